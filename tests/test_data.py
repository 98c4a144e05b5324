"""Rendered sets: determinism, true captions, disjoint styles, checked caches."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dpwg.data import RENDERED_SETS, SETS, faces, open_records, palette, public
from dpwg.data.avatars import variants
from dpwg.data.cache import RenderedRecords, render_set, set_folder
from dpwg.data.faces import face
from dpwg.data.public import public_image
from dpwg.data.records import MAX_CAPTION_CHARACTERS, Record
from dpwg.data.sets import SPLITS
from dpwg.training.encodings import coarse_batches

COUNT = 5
make_face = functools.partial(face, "train")


@pytest.fixture(scope="module")
def records() -> dict[str, list[Record]]:
    return {
        "faces": [face("train", index) for index in range(16)],
        "public": [public_image("train", index) for index in range(16)],
    }


@pytest.fixture(scope="module")
def rendered_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cache")
    done = list(render_set("faces-train", COUNT, make_face, root=root, processes=1))
    assert done == [COUNT]
    return root


def test_no_style_is_on_both_sides_and_splits_share_no_record() -> None:
    assert not any(style.startswith("avataaars") for style in public.STYLES)
    assert faces.STYLE not in public.STYLES
    splits = ("train", "more", "test")
    drawn = {public_image(split, index).image_bytes for split in splits for index in range(2)}
    assert len(drawn) == 6


def test_every_variant_that_is_named_exists() -> None:
    for style, spec in public.STYLES.items():
        assert not spec.hair or variants(style, spec.hair_component), style
        assert not spec.mouth_words or variants(style, spec.mouth_component), style
        if spec.clothes:
            assert {*spec.garments, ""} <= {*variants(style, spec.garment_component), ""}, style
        if spec.hat:
            assert {*spec.hats, ""} <= {*variants(style, spec.hat_component), ""}, style
    for component, words in {
        "top": faces.HAIR | faces.HEADWEAR,
        "clothes": faces.CLOTHES,
        "mouth": faces.MOUTH,
        "eyes": faces.EYES,
        "eyebrows": faces.EYEBROWS,
        "accessories": faces.GLASSES,
        "facialHair": faces.BEARDS,
    }.items():
        assert set(words) <= set(variants(faces.STYLE, component))


def test_images_differ_and_captions_say_what_they_show(records) -> None:
    words = ("skin", "background", "clothes", "expression", "glasses", "beard", "hair", "hat")
    for own in records.values():
        images = [record.image() for record in own]
        assert {(image.shape, image.dtype.name) for image in images} == {((128, 128, 3), "uint8")}
        assert len({image.tobytes() for image in images}) == len(images)
        for record in own:
            caption = record.captions[0]
            assert 0 < len(caption) <= MAX_CAPTION_CHARACTERS
            for name in words:
                assert record.attributes.get(name, "").lower() in caption.lower(), (name, caption)
            assert not re.search(r"\{|  ", caption)
    for record in records["faces"]:
        for name in ("hair_colour", "clothes_colour"):
            assert record.attributes[name] in record.captions[0].lower()
        colour = palette.BACKGROUND[record.attributes["background"]]
        assert bytes(record.image()[0, 0]) == bytes.fromhex(colour[1:])


def test_a_rendered_set_holds_the_records_and_is_not_rendered_again(
    rendered_root: Path, monkeypatch
) -> None:
    monkeypatch.setenv("DPWG_CACHE", str(rendered_root))
    rendered = open_records("faces-train", count=COUNT)
    assert (len(rendered), rendered.name) == (COUNT, "faces-train")
    for index, expected in enumerate(map(make_face, range(COUNT))):
        assert rendered[index].image_bytes == expected.image_bytes
        assert rendered[index].captions == expected.captions
        assert dict(rendered[index].attributes) == dict(expected.attributes)
    with pytest.raises(IndexError):
        rendered[COUNT]
    folder = set_folder("faces-train", COUNT, root=rendered_root)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert list(render_set("faces-train", COUNT, make_face, root=rendered_root)) == [COUNT]
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [path.name for path in rendered_root.iterdir()] == [f"faces-train-{COUNT}"]


@pytest.mark.parametrize("file", ["images.bin", "records.jsonl"])
def test_a_tampered_cache_is_refused(rendered_root: Path, tmp_path: Path, file: str) -> None:
    source = set_folder("faces-train", COUNT, root=rendered_root)
    for path in source.iterdir():
        content = bytearray(path.read_bytes())
        if path.name == file:
            content[len(content) // 2] ^= 1
        (tmp_path / path.name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"sha256 .*{file}.*render it again"):
        RenderedRecords(tmp_path)


def test_a_missing_set_names_the_command_and_an_unknown_one_the_known(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("DPWG_CACHE", str(tmp_path))
    for name in ("faces-train", "public-more"):
        with pytest.raises(FileNotFoundError, match=f"python -m dpwg data {name}"):
            open_records(name)
    with pytest.raises(ValueError, match="faces-train"):
        open_records("celebrities")


def test_what_is_known_of_each_set_fits_together() -> None:
    examples = Path(__file__).parents[1] / "examples"
    for name, own in SETS.items():
        assert (own.make is None) != (own.open is None), name
        assert (examples / own.examples).exists()
        assert not ("attack" in own.measures and {"train", "test"} - own.splits.keys()), name
        assert own.terms
        if own.variations:
            assert own.draw()
    assert {name for name, own in SETS.items() if not own.hidden} == {"faces", "public", "tuning"}
    assert len(SPLITS) == sum(len(own.splits) for own in SETS.values())
    assert not set(RENDERED_SETS) - SPLITS.keys()


def test_coarse_batches_are_the_block_means_in_order(records) -> None:
    class Listed(list):  # type: ignore[type-arg]
        name = "listed"

    batches = list(coarse_batches(Listed(records["faces"]), 32, batch=10))
    assert [len(batch) for batch in batches] == [10, 6]
    assert batches[0].dtype == torch.uint8
    blocks = records["faces"][11].image().reshape(32, 4, 32, 4, 3).mean((1, 3))
    found = batches[1][1].permute(1, 2, 0).numpy()
    assert np.abs(found - blocks).max() <= 0.5 + 1e-4
