"""Drawing codes: seeds, settings, guidance, and the distribution of a draw."""

from __future__ import annotations

import dataclasses

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


def empty(length: int = 5) -> EncodedText:
    return EncodedText(states_BLD=torch.ones(1, length, 8), mask_BL=torch.arange(length)[None] < 2)


def draw(model, text, seeds, settings=PLAIN) -> list[Tensor]:
    *_, codes = sample(model, text, empty(text.mask_BL.shape[1]), seeds, settings)
    return codes


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_seed_gives_the_same_codes_alone_and_in_any_batch(model, text, guidance: float) -> None:
    settings, seeds = Sampling(guidance=guidance), [11, 5, 11, 7, 2**31 - 1, 0]
    together = draw(model, text, seeds, settings)
    for codes, size in zip(together, model.config.codebook_sizes, strict=True):
        assert (codes.shape, codes.dtype) == ((6, 4, 2), torch.int64)
        assert 0 <= codes.min() <= codes.max() < size
    for i, seed in enumerate(seeds):
        own = [codes[i : i + 1] for codes in together]
        assert same(draw(model, rows(text, slice(i, i + 1)), [seed], settings), own)
    flipped = draw(model, rows(text, [5, 4, 3, 2, 1, 0]), seeds[::-1], settings)
    assert same([codes.flip(0) for codes in flipped], together)
    one = rows(text, slice(0, 1))
    drawn = {str([c.tolist() for c in draw(model, one, [seed], PLAIN)]) for seed in range(8)}
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
    codes = draw(model, text, [0] * 6, Sampling(guidance=4.0, temperature=0.0))
    with_B, none = model(text.states_BLD, text.mask_BL, codes), empty()
    free_B = model(none.states_BLD.expand(6, -1, -1), none.mask_BL.expand(6, -1), codes)
    for conditional, free, own in zip(with_B, free_B, codes, strict=True):
        assert torch.equal((free + 4 * (conditional - free)).argmax(-1), own)
    unguided = draw(model, text, range(6), Sampling(guidance=0.0, temperature=0.0))
    assert all((own == own[:1]).all() for own in unguided)


def test_every_scale_comes_once_with_all_codes_so_far(model, text) -> None:
    stages = sample(model, text, empty(), range(6), PLAIN)
    seen = [[x.clone() for x in codes] for codes in stages]
    assert [len(part) for part in seen] == [1, 2, 3]
    assert all(same(part, seen[-1][: len(part)]) for part in seen)
    with pytest.raises(ValueError, match="one seed a caption, found 2 and 6"):
        draw(model, text, [0, 1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guidance", -0.1),
        ("guidance", 21.0),
        ("temperature", 5.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", float("nan")),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Expected {name}="):
        Sampling(**{name: value})


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
    settings = Sampling(guidance=3.0)
    padded = draw(model, longer, range(6), settings)
    assert same(padded, draw(model, text, range(6), settings))
    assert Sampling.from_json(settings.to_json()) == settings
