"""Drawing codes: seeds, settings, guidance, and the distribution of a draw."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from scipy import stats
from torch import Tensor

from dpwg.method.captions import EncodedText
from dpwg.method.sampling import Sampling, _draw, _sorted, sample
from dpwg.method.transformer import WaveletGPT

PLAIN = Sampling(guidance=1.0, temperature=1.0, top_p=1.0)


@pytest.fixture(scope="module")
def model(make_model) -> WaveletGPT:
    return make_model().double()


@pytest.fixture(scope="module")
def text(make_inputs) -> EncodedText:
    inputs = make_inputs(6)
    return EncodedText(states_BLD=inputs.states_BLD, mask_BL=inputs.mask_BL)


def rows(text: EncodedText, part) -> EncodedText:
    return EncodedText(states_BLD=text.states_BLD[part], mask_BL=text.mask_BL[part])


def draw(model, text, seeds, settings=PLAIN, **options) -> list[Tensor]:
    empty = EncodedText(states_BLD=torch.ones(1, 5, 8), mask_BL=torch.arange(5)[None] < 2)
    *_, codes = sample(model, text, empty, seeds, settings, **options)
    return codes


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_seed_gives_the_same_codes_alone_and_in_any_batch(model, text, guidance: float) -> None:
    settings, seeds = Sampling(guidance=guidance), [11, 5, 11, 7, 2**31 - 1, 0]
    together = draw(model, text, seeds, settings)
    for i, seed in enumerate(seeds):
        own = [codes[i : i + 1] for codes in together]
        assert same(draw(model, rows(text, slice(i, i + 1)), [seed], settings), own)
    reverse = draw(model, rows(text, slice(None)), seeds, settings)
    assert same(reverse, together)
    flipped = EncodedText(states_BLD=text.states_BLD.flip(0), mask_BL=text.mask_BL.flip(0))
    assert same([c.flip(0) for c in draw(model, flipped, seeds[::-1], settings)], together)


def test_codes_have_their_shapes_and_stay_in_their_codebooks(model, text) -> None:
    for codes, size in zip(draw(model, text, range(6)), model.config.codebook_sizes, strict=True):
        assert codes.shape == (6, 4, 2)
        assert codes.dtype == torch.int64
        assert codes.min() >= 0
        assert codes.max() < size


def test_other_seeds_give_other_codes(model, text) -> None:
    one = rows(text, slice(0, 1))
    drawn = {json.dumps([c.tolist() for c in draw(model, one, [seed])]) for seed in range(8)}
    assert len(drawn) == 8


@torch.no_grad()
def test_temperature_zero_takes_the_likeliest_code_each_time(model, text) -> None:
    codes = draw(model, text, range(6), Sampling(guidance=1.0, temperature=0.0))
    for logits_BPKV, own in zip(model(text.states_BLD, text.mask_BL, codes), codes, strict=True):
        assert torch.equal(logits_BPKV.argmax(-1), own)


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(guidance=2.0, temperature=0.0),
        Sampling(guidance=2.0, top_k=1),
        Sampling(guidance=2.0, top_p=1e-9),
        Sampling(guidance=2.0, temperature=5.0, top_k=1, top_p=0.5),
    ],
)
def test_the_tightest_cuts_equal_temperature_zero_whatever_the_seed(model, text, settings) -> None:
    likeliest = draw(model, text, [1] * 6, Sampling(guidance=2.0, temperature=0.0))
    assert same(draw(model, text, range(6), settings), likeliest)


def test_guidance_one_makes_no_second_pass(model, text) -> None:
    passed: set[int] = set()
    hook = model.norm.register_forward_hook(lambda _, inputs, output: passed.add(len(output)))
    with hook:
        draw(model, text, range(6), Sampling(guidance=1.0))
        assert passed == {6}
        passed.clear()
        draw(model, text, range(6), Sampling(guidance=1.5))
        assert passed == {12}


@torch.no_grad()
def test_guidance_moves_away_from_the_empty_caption(model, text) -> None:
    empty = EncodedText(states_BLD=torch.ones(1, 5, 8), mask_BL=torch.arange(5)[None] < 2)
    settings = Sampling(guidance=4.0, temperature=0.0)
    *_, codes = sample(model, text, empty, [0] * 6, settings)
    with_B = model(text.states_BLD, text.mask_BL, codes)
    free_B = model(empty.states_BLD.expand(6, -1, -1), empty.mask_BL.expand(6, -1), codes)
    for conditional, free, own in zip(with_B, free_B, codes, strict=True):
        assert torch.equal((free + 4 * (conditional - free)).argmax(-1), own)


def test_guidance_zero_is_the_empty_caption(model, text) -> None:
    settings = Sampling(guidance=0.0, temperature=0.0)
    codes = draw(model, text, range(6), settings)
    assert all((own == own[:1]).all() for own in codes)


def test_every_scale_comes_once_with_all_codes_so_far(model, text) -> None:
    empty = EncodedText(states_BLD=torch.ones(1, 5, 8), mask_BL=torch.arange(5)[None] < 2)
    stages = sample(model, text, empty, range(6), PLAIN)
    seen = [[x.clone() for x in codes] for codes in stages]
    codes = draw(model, text, range(6))
    assert [len(part) for part in seen] == [1, 2, 3]
    for part in seen:
        assert same(part, codes[: len(part)])


def test_one_seed_a_caption_is_asked_for(model, text) -> None:
    with pytest.raises(ValueError, match="one seed a caption, found 2 and 6"):
        draw(model, text, [0, 1])


@pytest.mark.parametrize(
    "change",
    [
        {"guidance": -0.1},
        {"guidance": 21.0},
        {"guidance": float("nan")},
        {"temperature": -1.0},
        {"temperature": 5.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused_by_name(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"Expected {next(iter(change))}="):
        Sampling(**change)


def counts(logits_V: Tensor, settings: Sampling, draws: int = 20_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn_B = _draw(logits_V.expand(draws, -1), settings, [generator] * draws)
    return torch.bincount(drawn_B, minlength=len(logits_V))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    logits_V = torch.tensor([0.3, -1.0, 2.0, 0.3, 1.1, -2.5])
    expected_V = (logits_V.double() / temperature).softmax(0) * 20_000
    found_V = counts(logits_V, Sampling(temperature=temperature, top_p=1.0))
    assert stats.chisquare(found_V.numpy(), expected_V.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (dataclasses.replace(PLAIN, top_k=2), [2, 4]),
        (dataclasses.replace(PLAIN, top_k=100), [0, 1, 2, 3, 4, 5]),
        (dataclasses.replace(PLAIN, top_p=0.6), [2, 4]),
        (dataclasses.replace(PLAIN, top_p=0.5), [2]),
        (dataclasses.replace(PLAIN, top_p=0.6, top_k=1), [2]),
    ],
)
def test_cuts_keep_the_likeliest_codes_and_their_ratios(
    settings: Sampling, kept: list[int]
) -> None:
    logits_V = torch.tensor([0.05, 0.08, 0.52, 0.04, 0.25, 0.06]).log()
    found_V = counts(logits_V, settings)
    assert found_V.nonzero().flatten().tolist() == kept
    expected_V = logits_V[kept].double().softmax(0) * 20_000
    if len(kept) > 1:
        assert stats.chisquare(found_V[kept].numpy(), expected_V.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("top_p", [1e-17, 0.1, 0.9, 0.999, 1.0])
def test_few_chances_sorted_are_the_largest_of_all_sorted(top_p: float) -> None:
    """Peaked rows, a flat one, and one with many equal chances."""
    generator = torch.Generator().manual_seed(0)
    logits_BV = 4 * torch.randn(6, 400, generator=generator, dtype=torch.float64)
    logits_BV[4], logits_BV[5] = 0.0, logits_BV[5].round()
    for rows_BV in (logits_BV[:4], logits_BV, logits_BV[5:]):
        chances_BV = rows_BV.softmax(1)
        sorted_BV, order_BV = chances_BV.sort(dim=1, descending=True, stable=True)
        few_BK, codes_BK = _sorted(chances_BV, top_p)
        K = few_BK.shape[1]
        kept_BV = sorted_BV.cumsum(1) - sorted_BV < top_p
        assert not kept_BV[:, K:].any()
        assert torch.equal(few_BK[kept_BV[:, :K]], sorted_BV[kept_BV])
        assert torch.equal(codes_BK[kept_BV[:, :K]], order_BV[kept_BV])
    assert _sorted(logits_BV[:4].softmax(1), 0.9)[0].shape[1] < 100


def test_padding_of_every_caption_changes_no_code(model, text) -> None:
    longer = EncodedText(
        states_BLD=torch.nn.functional.pad(text.states_BLD, (0, 0, 0, 3)),
        mask_BL=torch.nn.functional.pad(text.mask_BL, (0, 3)),
    )
    empty = EncodedText(states_BLD=torch.ones(1, 8, 8), mask_BL=torch.arange(8)[None] < 2)
    *_, padded = sample(model, longer, empty, range(6), Sampling(guidance=3.0))
    assert same(padded, draw(model, text, range(6), Sampling(guidance=3.0)))


def test_rows_draw_from_their_own_generators(model, text) -> None:
    logits_BV = torch.zeros(3, 1000)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 1)]
    a, b, c = _draw(logits_BV, Sampling(), generators).tolist()
    assert a == c != b


def test_settings_go_through_json() -> None:
    settings = Sampling(guidance=3.5, temperature=1.0, top_k=7, top_p=1.0)
    assert Sampling.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert dataclasses.replace(settings, top_k=0) != settings
