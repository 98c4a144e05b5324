"""The reranker: what it learns, the candidates it chooses among, and when it is used at all."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dpwg.cli import main
from dpwg.config import RerankerConfig
from dpwg.measure.quality import reranker_quality
from dpwg.method.captions import EncodedText
from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.method.reranker import Reranker
from dpwg.method.sampling import Sampling, _candidate_seed, sample
from dpwg.method.transformer import WaveletGPT
from dpwg.release.export import Export, export_dataset
from dpwg.release.folder import Release, load_release
from dpwg.release.shared import (
    RERANKER,
    ReleasedReranker,
    load_reranker,
    reranker_for,
    reranker_reads,
    save_reranker,
    save_tokenizer,
)
from dpwg.release.space import write_space
from dpwg.training.examples import Examples
from dpwg.training.processes import Ranks
from dpwg.training.reranker import (
    RerankerTraining,
    coarsest_images,
    contrastive_loss,
    train_reranker,
)

SIZES = RerankerConfig(text_width=8, text_tokens=5, width=16, heads=2, blocks=1, slots=2)
PLAIN = Sampling(guidance=1.5, temperature=1.0, top_p=1.0, candidates=6)
COLOURS = ("red", "green", "blue", "white")
TOLD = {"name": "a reranker", "source": "trained for these tests", "licence": "CC0"}


def reranker_of(release: Release) -> ReleasedReranker | None:
    return reranker_for(release.tokenizer, release.text_encoder)


def reranker(seed: int = 0, config: RerankerConfig = SIZES) -> Reranker:
    torch.manual_seed(seed)
    return Reranker(config)


def halves(count: int) -> tuple[Tensor, Examples, list[str]]:
    """Images of one colour above and one below, with states that say so, word by word."""
    generator = torch.Generator().manual_seed(0)
    colour_N2 = torch.randint(4, (count, 2), generator=generator)
    rgb = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    image_NChw = (
        rgb[colour_N2].transpose(1, 2).repeat_interleave(4, 2)[..., None].expand(-1, -1, -1, 8)
    )
    states_NLD = torch.zeros(count, 5, 8)
    states_NLD[:, :2, :4] = torch.nn.functional.one_hot(colour_N2, 4).float()
    states_NLD[:, torch.arange(2), 4 + torch.arange(2)] = 1
    text = {
        "states": states_NLD,
        "mask": torch.arange(5).expand(count, -1) < 2,
        "count": torch.ones(count, dtype=torch.int64),
        "empty_states": torch.zeros(5, 8),
        "empty_mask": torch.arange(5) < 1,
    }
    codes = {f"codes_{s}": torch.zeros(count, 4, 2, dtype=torch.int16) for s in range(3)}
    captions = [f"{COLOURS[a]} above {COLOURS[b]}" for a, b in colour_N2.tolist()]
    return image_NChw, Examples(text, codes), captions


def test_scores_are_products_of_unit_vectors_that_padding_does_not_change() -> None:
    own, (image_NChw, examples, _) = reranker(), halves(6)
    batch = examples.batch(torch.arange(6))
    image_BV, text_BV = own.images(image_NChw), own.captions(batch.states_BLD, batch.mask_BL)
    for vectors_BV in (image_BV, text_BV):
        torch.testing.assert_close(vectors_BV.norm(dim=1), torch.ones(6))
    scores_BB = own.scores(image_NChw, batch.states_BLD, batch.mask_BL)
    torch.testing.assert_close(scores_BB, own.log_scale.exp() * image_BV @ text_BV.T)
    padded_BLD = batch.states_BLD.clone()
    padded_BLD[:, 2:] = torch.randn(6, 3, 8)
    torch.testing.assert_close(own.captions(padded_BLD, batch.mask_BL), text_BV)


def test_training_finds_captions_that_chance_does_not() -> None:
    own, (image_NChw, examples, captions) = reranker(), halves(400)
    settings = RerankerTraining(
        steps=120, batch=32, group=16, warmup=5, learning_rate=1e-2, ema_decay=0.9, report_every=60
    )
    before = reranker_quality(own, image_NChw, examples, captions, among=10)
    reports = list(train_reranker(own, image_NChw, examples, captions, settings))
    assert [report.step for report in reports] == [60, 120]
    assert reports[1].loss < reports[0].loss
    after = reranker_quality(own, image_NChw, examples, captions, among=10)
    assert (after.records, after.among) == (400, 10)
    assert before.captions_found < 0.3 < 0.9 < after.captions_found
    assert before.images_found < 0.3 < 0.9 < after.images_found


def test_the_loss_counts_the_others_that_differ() -> None:
    scores_BB = torch.zeros(4, 4)
    assert contrastive_loss(scores_BB, torch.arange(4)).item() == pytest.approx(np.log(4))
    assert contrastive_loss(scores_BB, torch.tensor([0, 0, 1, 2])).item() == pytest.approx(
        np.log([3, 3, 4, 4]).mean()
    )
    assert contrastive_loss(scores_BB, torch.zeros(4, dtype=torch.int64)).item() == 0
    uneven_BB, own_B = torch.arange(16.0).view(4, 4) % 5, torch.arange(4)
    both = contrastive_loss(uneven_BB, own_B)  # captions look for images as images for captions
    torch.testing.assert_close(contrastive_loss(uneven_BB.T, own_B), both)
    scores_BB.fill_diagonal_(50)
    assert contrastive_loss(scores_BB, torch.arange(4)).item() < 1e-6


def test_sets_and_batches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 48"):
        RerankerTraining(group=48)
    image_NChw, examples, captions = halves(40)
    settings = RerankerTraining(steps=1, batch=32, group=16)
    with pytest.raises(ValueError, match="3 processes"):
        next(train_reranker(reranker(), image_NChw, examples, captions, settings, Ranks(0, 3)))


@pytest.fixture(scope="module")
def model(make_model) -> WaveletGPT:
    return make_model().double()


@pytest.fixture(scope="module")
def text(make_inputs) -> EncodedText:
    inputs = make_inputs(5)
    return EncodedText(states_BLD=inputs.states_BLD, mask_BL=inputs.mask_BL)


def draw(model, text, choose, settings=PLAIN, rows=slice(None), seeds=range(5)) -> list[Tensor]:
    empty = EncodedText(states_BLD=torch.ones(1, 5, 8), mask_BL=torch.arange(5)[None] < 2)
    own = EncodedText(states_BLD=text.states_BLD[rows], mask_BL=text.mask_BL[rows])
    *_, codes = sample(model, own, empty, list(seeds)[rows], settings, choose=choose)
    return codes


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def smallest(codes_BNPK: Tensor, _: Tensor) -> Tensor:
    return codes_BNPK.flatten(2).sum(2).argmin(1)


def fourth(codes_BNPK: Tensor, _: Tensor) -> Tensor:
    return torch.full((len(codes_BNPK),), 3)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_the_chosen_candidate_goes_on_as_if_it_had_been_alone(model, text, guidance: float) -> None:
    settings = dataclasses.replace(PLAIN, guidance=guidance)
    alone, seen = draw(model, text, None, settings), []

    def first(codes_BNPK: Tensor, _: Tensor) -> Tensor:
        seen.append(codes_BNPK.clone())
        return torch.zeros(len(codes_BNPK), dtype=torch.int64)

    assert same(draw(model, text, first, settings), alone)
    assert seen[0].shape == (5, 6, 4, 2)
    assert torch.equal(seen[0][:, 0], alone[0])
    assert len(seen[0].flatten(2)[0].unique(dim=0)) > 1
    another = draw(model, text, fourth, settings)
    assert torch.equal(another[0], seen[0][:, 3])
    assert not same(another, alone)
    seeds = [_candidate_seed(seed, 3) for seed in range(5)]
    assert same(another, draw(model, text, None, settings, seeds=seeds))


@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("rows", [1, 12, 18])
def test_candidates_are_the_same_alone_in_any_batch_and_a_few_at_a_time(
    model, text, monkeypatch, rows: int, guidance: float
) -> None:
    settings = dataclasses.replace(PLAIN, guidance=guidance)
    together, seen = draw(model, text, smallest, settings), []

    def watched(codes_BNPK: Tensor, image_B: Tensor) -> Tensor:
        assert len(codes_BNPK) == len(image_B)
        seen.append(image_B.tolist())
        return smallest(codes_BNPK, image_B)

    monkeypatch.setattr("dpwg.method.sampling.ROWS", rows)
    assert same(draw(model, text, watched, settings), together)
    assert [image for part in seen for image in part] == list(range(5))
    assert max(map(len, seen)) == max(1, rows // 6)
    for row in range(5):
        own = [codes[row : row + 1] for codes in together]
        assert same(draw(model, text, smallest, settings, rows=slice(row, row + 1)), own)


def test_nothing_is_chosen_where_there_is_no_choice(model, text) -> None:
    def never(codes_BNPK: Tensor, image_B: Tensor) -> Tensor:
        raise AssertionError

    for settings in (Sampling(candidates=1), Sampling(temperature=0.0)):
        assert same(draw(model, text, never, settings), draw(model, text, None, settings))
    greedy = Sampling(guidance=1.0, temperature=1.0, top_k=1, candidates=4)  # all are equal
    assert same(draw(model, text, fourth, greedy), draw(model, text, None, greedy))


@pytest.fixture
def own_root(root, tmp_path, monkeypatch) -> Path:
    """The tiny releases again, with a reranker of theirs beside them."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(root, folder)
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(folder))
    release = load_release("faces/public")
    config = dataclasses.replace(
        SIZES,
        text_width=release.model.config.text_width,
        **reranker_reads(
            release.tokenizer, release.text_encoder.digest, release.text_encoder.max_tokens
        ),
    )
    save_reranker(folder / RERANKER, reranker(config=config), TOLD)
    return folder


def test_a_saved_reranker_is_used_for_its_own_tokenizer_and_encoder_alone(
    own_root, make_tokenizer
) -> None:
    release = load_release("faces/public")
    released = reranker_of(release)
    assert released is not None
    assert released.public_input == TOLD
    expected = reranker(config=released.model.config).bfloat16().float().state_dict()
    read = released.model.state_dict()
    assert read.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read.items())
    encoder = dataclasses.replace(release.text_encoder, max_tokens=20)
    assert reranker_of(dataclasses.replace(release, text_encoder=encoder)) is None
    other = dataclasses.replace(release, tokenizer=make_tokenizer(seed=1))
    assert reranker_of(other) is None
    for file in (own_root / RERANKER).glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match="to hold a reranker, found FileNotFoundError"):
        reranker_of(release)
    assert reranker_of(other) is None  # its weights are not asked for
    (own_root / RERANKER / "config.json").unlink()
    with pytest.raises(ValueError, match="to hold a reranker, found FileNotFoundError"):
        reranker_of(other)


def test_the_pipeline_draws_what_the_reranker_likes_best(own_root) -> None:
    pipe = DPWaveletPipeline.from_pretrained("faces/public")
    captions = ["a person with red hair", "a person with black hair"]
    one = pipe(captions, seed=3, settings=dataclasses.replace(PLAIN, candidates=1))
    best = pipe(captions, seed=3, settings=dataclasses.replace(PLAIN, candidates=12))
    assert (pipe.candidates(), pipe.candidates(Sampling(temperature=0.0))) == (8, 1)
    assert not np.array_equal(one.partials[0], best.partials[0])
    assert (one.candidates, best.candidates, best.to_json()["candidates"]) == (1, 12, 12)
    released, text = reranker_of(pipe.release), pipe.encoder.encode(captions)
    assert one.reranker is None
    assert best.to_json()["reranker"] == released.to_json()
    states_BLD = text.states_BLD.float()
    liking = [
        released.model.scores(
            torch.from_numpy(partial).permute(0, 3, 1, 2).float() / 255, states_BLD, text.mask_BL
        ).diagonal()
        for partial in (one.partials[0], best.partials[0])
    ]
    assert (liking[1] > liking[0]).all()


def test_a_space_takes_the_reranker_along(own_root, tmp_path) -> None:
    assert "checkpoints/reranker/config.json" in write_space(tmp_path / "space", ["faces/public"])
    copied = load_reranker(tmp_path / "space" / "checkpoints" / RERANKER)
    assert copied.to_json() == load_reranker(own_root / RERANKER).to_json()


def test_a_picture_is_the_same_alone_and_beside_others_with_candidates(own_root) -> None:
    pipe = DPWaveletPipeline.from_pretrained("faces/public")
    captions = ["a person with red hair", " ", "a person in a black hoodie on a teal background"]
    together = pipe(captions, seed=3, settings=PLAIN, upsampler="bicubic")
    for place, caption in enumerate(captions):
        alone = pipe(caption, seed=3 + place, settings=PLAIN, upsampler="bicubic")
        assert np.array_equal(alone.image[0], together.image[place])
        assert alone.candidates == (PLAIN.candidates if caption.strip() else 1)
    once = dataclasses.replace(PLAIN, candidates=1)  # of no caption the first one goes on
    for seed in range(4):
        free = pipe(" ", seed=seed, settings=PLAIN, upsampler="bicubic")
        assert free.reranker is None
        alone = pipe(" ", seed=seed, settings=once, upsampler="bicubic")
        assert np.array_equal(free.coarse, alone.coarse)


def test_an_export_goes_on_with_the_reranker_that_it_began_with(own_root, tmp_path) -> None:
    export = Export(
        captions=("a face", "red hair"),
        captions_from="Written for this test",
        upsampler="bicubic",
        part=1,
    )
    folder = own_root / RERANKER

    def begun(out: Path) -> dict[str, Any]:
        pipe = DPWaveletPipeline.from_pretrained("faces/eps-1")
        list(export_dataset(pipe, export, out, checkpoint="faces/eps-1"))
        return json.loads((out / "export.json").read_text())

    own = load_reranker(folder)
    plan = begun(tmp_path / "a")
    assert (plan["sampling"]["candidates"], plan["reranker"]) == (8, own.to_json())
    assert TOLD["source"] in (tmp_path / "a" / "README.md").read_text()
    save_reranker(folder, reranker(1, own.model.config), TOLD)
    with pytest.raises(ValueError, match="found another reranker"):
        begun(tmp_path / "a")
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="found another reranker, sampling"):
        begun(tmp_path / "a")
    plan = begun(tmp_path / "b")
    assert (plan["sampling"]["candidates"], plan["reranker"]) == (1, None)
    assert TOLD["source"] not in (tmp_path / "b" / "README.md").read_text()


def test_nothing_but_a_reranker_is_replaced_by_one(own_root) -> None:
    own = load_reranker(own_root / RERANKER)
    save_reranker(own_root / RERANKER, reranker(1, own.model.config), TOLD)
    assert load_reranker(own_root / RERANKER).sha256 != own.sha256
    before = (own_root / "tokenizer" / "config.json").read_bytes()
    for place in ("tokenizer", "faces/eps-1", "faces"):
        with pytest.raises(ValueError, match="an earlier RerankerConfig"):
            save_reranker(own_root / place, own.model, TOLD)
        assert main(["reranker", "--out", str(own_root / place), "--count", "300"]) == 2
    assert (own_root / "tokenizer" / "config.json").read_bytes() == before
    assert load_release("faces/eps-1").card.steps == 100


def test_coarsest_images_are_decoded_from_the_first_codes(
    make_tokenizer, images, monkeypatch
) -> None:
    monkeypatch.setattr("dpwg.training.reranker.CHUNK", 5)
    tokenizer, (_, examples, _) = make_tokenizer(), halves(12)
    codes = tokenizer.encode(images[:12])
    examples._codes = codes
    expected = tokenizer.decode(codes[:1])
    torch.testing.assert_close(torch.cat([*coarsest_images(tokenizer, examples)]), expected)


def test_the_verb_trains_one_for_the_checkpoints_in_use(
    root, image_folder, capsys, monkeypatch, tmp_path, make_tokenizer
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(root, folder)
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(folder))
    monkeypatch.setenv("DPWG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dpwg.training.encodings.CHUNK", 12)
    words = ["reranker", "--data", str(image_folder), "--steps", "1", "--group", "4", "--json"]
    assert main([*words, "--batch", "8"]) == 2
    assert "--public" in capsys.readouterr().err
    assert main([*words, "--batch", "16", "--public"]) == 2  # of 12 records
    assert reranker_of(load_release("faces/eps-1")) is None
    sample_words = ["sample", "--checkpoint", "faces/eps-1", "--caption", "a", "--out", "x"]
    assert main([*sample_words, "--candidates", "4"]) == 2  # nothing chooses among them
    assert main([*words, "--batch", "8", "--public"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(folder / RERANKER), "steps": 1}
    released = reranker_of(load_release("faces/eps-1"))
    assert released is not None
    assert f"12 records of {image_folder.name}" in released.public_input["source"]
    save_tokenizer(tmp_path / "other", make_tokenizer(seed=1))
    measure = ["reranker", "--evaluate", str(image_folder)]
    for more, message in (
        ([], "Expected 100 records or more, found 12"),
        (["--out", str(folder / "tokenizer")], "to hold a reranker, found KeyError"),
        (["--tokenizer", str(tmp_path / "other")], "to have codebook_sha256="),
    ):
        assert main([*measure, *more]) == 2
        assert message in capsys.readouterr().err
