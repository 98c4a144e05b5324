"""Rendered sets: determinism, true captions, disjoint styles, checked caches."""

from __future__ import annotations

import functools
import json
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
        "faces": [face("train", index) for index in range(24)],
        "public": [public_image("train", index) for index in range(24)],
    }


@pytest.fixture(scope="module")
def rendered_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cache")
    done = list(render_set("faces-train", COUNT, make_face, root=root, processes=1))
    assert done == [COUNT]
    return root


def test_no_style_is_on_both_sides() -> None:
    assert faces.STYLE not in public.STYLES
    assert not any(style.startswith("avataaars") for style in public.STYLES)


def test_splits_of_the_public_mix_share_no_record() -> None:
    splits = ("train", "more", "test")
    drawn = {public_image(split, index).image_bytes for split in splits for index in range(4)}
    assert len(drawn) == 12


def test_public_styles_and_components_exist() -> None:
    for style, spec in public.STYLES.items():
        if spec.hair:
            assert variants(style, spec.hair_component), style
        if spec.mouth_words:
            assert variants(style, spec.mouth_component), style
        if spec.clothes:
            known = set(variants(style, spec.garment_component))
            assert set(spec.garments) <= known | {""}, style
        if spec.hat:
            assert set(spec.hats) <= set(variants(style, spec.hat_component)) | {""}, style


@pytest.mark.parametrize(
    ("component", "words"),
    [
        ("top", faces.HAIR | faces.HEADWEAR),
        ("clothes", faces.CLOTHES),
        ("mouth", faces.MOUTH),
        ("eyes", dict.fromkeys(faces.EYES)),
        ("eyebrows", dict.fromkeys(faces.EYEBROWS)),
        ("accessories", faces.GLASSES),
        ("facialHair", faces.BEARDS),
    ],
)
def test_every_variant_that_a_face_names_exists(component: str, words: dict[str, str]) -> None:
    assert set(words) <= set(variants(faces.STYLE, component))


def test_images_are_rgb_of_128_pixels_and_differ(records) -> None:
    for own in records.values():
        images = [record.image() for record in own]
        assert {(image.shape, image.dtype.name) for image in images} == {((128, 128, 3), "uint8")}
        assert len({image.tobytes() for image in images}) == len(images)
        assert all(image.std() > 5 for image in images)


def test_captions_say_the_attributes(records) -> None:
    words = ("skin", "background", "clothes", "expression", "glasses", "beard", "hair", "hat")
    for own in records.values():
        for record in own:
            caption, *_ = record.captions
            assert 0 < len(caption) <= MAX_CAPTION_CHARACTERS
            for name in words:
                assert record.attributes.get(name, "").lower() in caption.lower(), (name, caption)
            assert "{}" not in caption
            assert "  " not in caption


def test_a_face_says_its_colours_and_shows_its_background(records) -> None:
    for record in records["faces"]:
        caption, *_ = record.captions
        attributes = record.attributes
        for name in ("hair_colour", "clothes_colour", "background", "skin"):
            assert attributes[name] in caption.lower()
        corner = tuple(
            int(palette.BACKGROUND[attributes["background"]][i : i + 2], 16) for i in (1, 3, 5)
        )
        assert tuple(record.image()[0, 0].tolist()) == corner


def test_a_rendered_set_holds_the_records(rendered_root: Path, monkeypatch) -> None:
    monkeypatch.setenv("DPWG_CACHE", str(rendered_root))
    rendered = open_records("faces-train", count=COUNT)
    assert (len(rendered), rendered.name) == (COUNT, "faces-train")
    for index in range(COUNT):
        expected = make_face(index)
        assert rendered[index].image_bytes == expected.image_bytes
        assert rendered[index].captions == expected.captions
        assert dict(rendered[index].attributes) == dict(expected.attributes)
    with pytest.raises(IndexError):
        rendered[COUNT]


def test_rendering_again_does_nothing_and_leaves_nothing_behind(rendered_root: Path) -> None:
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


@pytest.mark.parametrize("name", ["faces-train", "public-more"])
def test_a_missing_set_names_the_command(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setenv("DPWG_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"python -m dpwg data {name}"):
        open_records(name)
    assert set_folder("a", 3) == tmp_path / "a-3"


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


def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="faces-train"):
        open_records("celebrities")


def test_coarse_batches_are_the_block_means_in_order(records) -> None:
    class Listed(list):  # type: ignore[type-arg]
        name = "listed"

    batches = list(coarse_batches(Listed(records["faces"]), 32, batch=10))
    assert [len(batch) for batch in batches] == [10, 10, 4]
    assert batches[0].dtype == torch.uint8
    blocks = records["faces"][11].image().reshape(32, 4, 32, 4, 3).mean((1, 3))
    found = batches[1][1].permute(1, 2, 0).numpy()
    assert np.abs(found - blocks).max() <= 0.5 + 1e-4


@pytest.fixture
def folder(tmp_path: Path, records) -> Path:
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    for name, record in zip(("a.png", "deep/b.png", "c.png"), records["faces"], strict=False):
        (tmp_path / "mine" / name).write_bytes(record.image_bytes)
    (tmp_path / "outside.png").write_bytes(records["faces"][3].image_bytes)
    return tmp_path / "mine"


def write_rows(folder: Path, *rows: tuple[str, str], table: bool = False) -> None:
    if table:
        text = "".join(f'{name},"{caption}"\n' for name, caption in (("file_name", "text"), *rows))
        (folder / "metadata.csv").write_text(text)
    else:
        lines = (json.dumps({"file_name": name, "text": caption}) for name, caption in rows)
        (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("table", [False, True])
def test_a_folder_is_one_record_a_file_with_all_its_captions(folder: Path, records, table) -> None:
    rows = (("a.png", "one, two"), ("deep/b.png", "x"), ("deep/../a.png", "three"))
    write_rows(folder, *rows, table=table)
    found = open_records(str(folder))
    assert (found.name, len(found)) == ("mine", 2)
    assert found[0].captions == ("one, two", "three")
    assert found[1].image_bytes == records["faces"][1].image_bytes


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([("../outside.png", "x")], ValueError, r"\.\./outside.png.*row 1"),
        ([("a.png", "x"), ("no.png", "x")], ValueError, "1 of 2 have none, first no.png: no image"),
        ([("a.png", " ")], ValueError, "a.png: no caption.*--skip-broken"),
        ([("", "x")], ValueError, "row 1"),
        ([("a.png", 5)], ValueError, "row 1"),
        ([], ValueError, "at least one record"),
    ],
)
def test_rows_that_are_no_record_are_refused_by_name(folder: Path, rows, error, message) -> None:
    write_rows(folder, *rows)
    with pytest.raises(error, match=message):
        open_records(f"folder:{folder}")


def test_a_folder_digest_follows_images_and_captions(folder: Path, records) -> None:
    write_rows(folder, ("a.png", "one"))
    first = open_records(f"folder:{folder}").digest
    assert open_records(f"folder:{folder}").digest == first
    write_rows(folder, ("a.png", "two"))
    second = open_records(f"folder:{folder}").digest
    (folder / "a.png").write_bytes(records["faces"][5].image_bytes)
    assert len({first, second, open_records(f"folder:{folder}").digest}) == 3
