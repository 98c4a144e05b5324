"""A whole family within a time budget: every stage, killed and resumed, packed and unpacked."""

from __future__ import annotations

import dataclasses
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_photos import celeba_official, tiny_official, utkface_official
from tiny import shrunk

from dpwg.cli import main
from dpwg.data import open_records
from dpwg.data.records import group_numbers
from dpwg.method.encoders import default_encoder
from dpwg.method.families import new_tokenizer
from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.release.folder import load_card, load_release
from dpwg.training import family as recipe
from dpwg.training.encodings import coarse_images, encode_examples, prepare_examples
from dpwg.training.family import train_family
from dpwg.training.optimizer import finished
from dpwg.training.presets import FAMILIES, MAX_BATCH, Family, Preset, PrivateRun, get_preset
from dpwg.training.sources import Source

RECORDS, PERSONS = 8, 2


def tiny_preset() -> Preset:
    """The photographs' preset with tiny models."""
    small = shrunk(get_preset("photos-128"), 16)
    return dataclasses.replace(
        small,
        tokenizer_training=dataclasses.replace(small.tokenizer_training, batch=8, foresee_steps=2),
        superresolution_training=dataclasses.replace(
            small.superresolution_training, batch=2, images=8
        ),
        pretraining=dataclasses.replace(small.pretraining, batch=4),
        finetuning=dataclasses.replace(small.finetuning, micro_batch=4, lora_rank=2, save_every=2),
    )


@pytest.fixture(scope="module")
def family() -> Iterator[Family]:
    """CelebA's family with tiny models, on a device that is always as fast."""
    small = tiny_preset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "get_preset", lambda name: small)
        patch.setattr(recipe, "REHEARSED", 3)
        patch.setattr(recipe, "private_rate", lambda model, settings, ranks: 25.0)
        yield FAMILIES["celeba"]


@pytest.fixture(scope="module")
def trained(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a family whose training was killed ten times on its way."""
    folder, rng = tmp_path_factory.mktemp("family"), random.Random(0)
    for _ in range(10):
        with pytest.raises(KilledError):
            run(family, folder, stop_after=rng.randrange(3))
    run(family, folder)
    return folder


def source(folder: Path) -> Source:
    """Drawn pictures in the official layouts of CelebA, UTKFace and Tiny-ImageNet."""
    photos = folder / "photos"
    if not photos.exists():
        celeba_official(photos)
        utkface_official(photos / "UTKFace")
        tiny_official(photos / "tiny-imagenet-200")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPWG_PHOTOS", str(photos))
        public, private = open_records("public-photos"), open_records("celeba-train")
    return Source(public, private, default_encoder(), folder / "cache")


class KilledError(Exception):
    """Stands for the end of a process: nothing of it is there but what it wrote."""


def run(family: Family, tmp_path: Path, *, stop_after: int | None = None) -> list[Any]:
    done = []
    reports = train_family(
        family,
        source(tmp_path),
        tmp_path / "out",
        tmp_path / "run",
        minutes=0.03,
        clock=lambda: 0.0,  # nothing takes any time, so that the plans are those of a short budget
    )
    for count, report in enumerate(reports):
        if count == stop_after:
            reports.close()
            raise KilledError
        if report.done is not None:
            done.append(report)
    return done


def test_every_release_keeps_its_promise_however_often_the_run_was_killed(
    family: Family, trained: Path
) -> None:
    plans = recipe.json.loads((trained / "run" / "recipe.json").read_text())["plans"]
    for own in family.runs:
        card, plan = load_card(trained / "out" / own.name), plans[own.name]["plan"]
        assert card.records == plan["records"] == (RECORDS if own.unit == "image" else PERSONS)
        (entry,) = card.ledger.entries
        assert entry.steps == plan["steps"] == plans[own.name]["steps"]
        assert entry.sampling_rate == plan["batch_size"] / plan["records"]
        assert card.delta == 1e-6
        if own.epsilon == math.inf:
            assert card.epsilon is None
        else:
            assert 0.99 * own.epsilon < card.epsilon <= own.epsilon
        assert card.unit.startswith("One group") == (own.unit == "person")
    public = load_card(trained / "out" / "public")
    assert public.epsilon == 0
    assert any("near-copies" in item["source"] for item in public.public_inputs)
    assert not run(family, trained)  # nothing is left to do


def test_the_releases_draw_pictures_and_name_the_upsampler_that_suits_them(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = load_release(trained / "out" / "eps-10")
    assert release.upsampler == "photo"
    assert release.adapter is not None
    (tmp_path / "celeba").symlink_to(trained / "out")
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(tmp_path))
    pipe = DPWaveletPipeline(load_release(trained / "out" / "eps-10"), default_encoder())
    assert pipe("a picture").image.shape == (1, 128, 128, 3)


def test_packed_records_train_as_the_photographs_do(trained: Path, tmp_path: Path) -> None:
    whole = source(trained)
    tokenizer = recipe.load_tokenizer(trained / "out" / "tokenizer")
    whole.pack(tokenizer, ("person",), tmp_path / "packed")
    names = {file.name for file in (tmp_path / "packed").iterdir()}
    assert names == {
        "records.json.gz",
        "codes.npz",
        "encoder.tar",
        ".gitignore",
    }
    packed = Source.packed(tmp_path / "packed", torch.device("cpu"))
    assert len(packed.private) == RECORDS
    assert (packed.cleaned, packed.private.name) == (whole.cleaned, whole.private.name)
    assert group_numbers(packed.private, "person") == group_numbers(whole.private, "person")
    draw_B = torch.rand(RECORDS, generator=torch.Generator().manual_seed(0)).double()
    for own in ("private", "public"):
        kept = [
            prepare_examples(getattr(s, own), s.encoder, tokenizer, s.cache)
            for s in (whole, packed)
        ]
        assert kept[0].digest == kept[1].digest
        indices = torch.arange(len(kept[0]))[:RECORDS]
        first, second = (e.batch(indices, draw_B=draw_B[: len(indices)]) for e in kept)
        for a, b in zip(first.codes, second.codes, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(first.mask_BL, second.mask_BL)
        # half precision: the encoder's weights are rounded to 11 bits
        error = (first.states_BLD - second.states_BLD).float().norm()
        assert error < 0.02 * first.states_BLD.float().norm()
    other = new_tokenizer(tokenizer.config)
    for work in (
        coarse_images(packed.public, 32, packed.cache),
        encode_examples(packed.public, packed.encoder, other, packed.cache),
    ):
        with pytest.raises(FileNotFoundError, match="no images"):
            finished(work)


@pytest.mark.parametrize("examples", [500, 36_000, 655_360, 10_000_000])
@pytest.mark.parametrize("own", FAMILIES["celeba"].runs, ids=lambda own: own.name)
def test_a_run_spends_the_examples_that_it_is_given(own: PrivateRun, examples: int) -> None:
    steps, batch = own.sizes(examples, 37_540)
    assert steps * batch == pytest.approx(examples, rel=0.1)
    assert 1 <= batch <= MAX_BATCH
    if batch < MAX_BATCH:
        assert steps / batch == pytest.approx(own.pace, rel=0.3, abs=0.02)


def test_what_cannot_be_trained_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DPWG_PHOTOS", raising=False)
    for words in (["dogs", "--minutes", "3"], ["celeba"], ["celeba", "--minutes", "3"]):
        assert main(["train", *words]) == 2
    told = capsys.readouterr().err.splitlines()
    assert ["dogs" in told[0], "--minutes" in told[1], "DPWG_PHOTOS" in told[2]] == [True] * 3


def test_a_run_belongs_to_its_output_and_needs_time(
    family: Family, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="another run folder"):
        next(train_family(family, source(trained), tmp_path, trained / "run", minutes=1))
    for name in ("tokenizer", "upsampler", "public"):
        shutil.copytree(trained / "out" / name, tmp_path / "out" / name)
    hasty = train_family(
        family, source(trained), tmp_path / "out", tmp_path / "run", minutes=1e-4, clock=lambda: 0.0
    )
    with pytest.raises(ValueError, match="more minutes"):
        list(hasty)
    assert not (tmp_path / "out" / "eps-10").exists()
