"""Captions to draw from: whose they may be, and how they are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dpwg.data.prompts import read_captions
from dpwg.data.public import public_caption, public_image
from dpwg.data.records import MAX_CAPTION_CHARACTERS


def read(source: Path | str, **declared: bool) -> tuple[str, ...]:
    return read_captions(str(source), private_set="patients", **declared)


def test_public_captions_are_always_the_same_and_of_no_record() -> None:
    captions = read("public:40")
    assert captions[:10] == read("public:10") == tuple(map(public_caption, range(10)))
    assert len(set(captions)) == 40
    records = {public_image(split, i).captions[0] for split in ("train", "test") for i in range(2)}
    assert not records & set(captions)


@pytest.mark.parametrize("number", ["", "0", "-1", "1.5", "x", "²", "99999999999"])
def test_how_many_public_captions_is_a_number(number: str) -> None:
    with pytest.raises(ValueError, match=r"10,000,000"):
        read(f"public:{number}")


def test_a_file_has_a_caption_a_line_in_any_editors_form(tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffa face\r\n\r\n  été, 笑顔 \nlast".encode())
    assert read(tmp_path / "a.txt") == ("a face", "été, 笑顔", "last")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "at least one caption"),
        (b" \n\n", "at least one caption"),
        (b"ok\n" + b"x" * (MAX_CAPTION_CHARACTERS + 1), "found 501 in line 2"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_a_file_that_has_no_captions_is_refused(tmp_path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.txt")


def test_a_folder_or_nothing_is_no_file(tmp_path) -> None:
    with pytest.raises(OSError, match=tmp_path.name):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.txt")


@pytest.fixture
def private(tmp_path, image_folder) -> Path:
    """A folder of captioned images, as a private run takes it."""
    shutil.copytree(image_folder, tmp_path / "folder")
    (tmp_path / "folder" / "captions.txt").write_text("image 3")
    (tmp_path / "folder" / "metadata.csv").write_text("file_name,text\n0.png,image 0\n")
    return tmp_path / "folder"


def test_a_data_sets_own_captions_are_refused_with_the_reason(
    private, tmp_path, monkeypatch
) -> None:
    (tmp_path / "link.txt").symlink_to(private / "metadata.jsonl")
    (tmp_path / "Metadata.JSONL").write_text("{}")
    monkeypatch.chdir(private)
    for source in (
        private / "metadata.jsonl",
        private / "metadata.csv",
        private / "captions.txt",
        private,
        Path("metadata.jsonl"),
        Path("captions.txt"),
        tmp_path / "link.txt",
        tmp_path / "Metadata.JSONL",
    ):
        with pytest.raises(ValueError, match="captions are private too, and the data set would"):
            read(source)


@pytest.mark.parametrize("folder", ["patients", "patients-50000", "patients/2024/notes"])
def test_the_set_that_the_card_names_is_refused(tmp_path, folder: str) -> None:
    path = tmp_path / folder / "captions.txt"
    path.parent.mkdir(parents=True)
    path.write_text("a man with a scar")
    (tmp_path / "open.txt").symlink_to(path)
    for source in (path, path.parent, tmp_path / "open.txt"):
        with pytest.raises(ValueError, match="which the checkpoint's card names as private"):
            read(source)
    assert read(path, public=True) == ("a man with a scar",)


def test_other_names_are_not_mistaken_for_it(tmp_path) -> None:
    for folder in ("patients-of-others", "outpatients", "Patients2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "captions.txt").write_text("a face")
        assert read(tmp_path / folder / "captions.txt") == ("a face",)


def test_a_stray_archive_above_does_not_make_captions_private(tmp_path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "backup.tar").write_bytes(b"")
    (tmp_path / "sales.parquet").write_bytes(b"")
    (tmp_path / "notes" / "captions.txt").write_text("a face")
    assert read(tmp_path / "notes" / "captions.txt") == ("a face",)
    shutil.move(tmp_path / "backup.tar", tmp_path / "notes" / "shard.tar")
    with pytest.raises(ValueError, match="captions are private too"):
        read(tmp_path / "notes" / "captions.txt")


def test_captions_beside_images_are_private(tmp_path) -> None:
    (tmp_path / "10_cats").mkdir()
    (tmp_path / "10_cats" / "0.png").write_bytes(b"")
    for path in (tmp_path / "10_cats" / "0.txt", tmp_path / "all.txt"):
        path.write_text("a secret")
        with pytest.raises(ValueError, match="captions are private too"):
            read(path)


def test_captions_that_are_declared_public_are_read_from_metadata_too(private) -> None:
    assert read(private / "metadata.jsonl", public=True)[:2] == ("image 0", "image 1")
    assert read(private / "metadata.csv", public=True) == ("image 0",)
    rows = [{"text": "half \ud83d a face"}, {"text": None}, {"file_name": "1.png"}]
    (private / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(private / "metadata.jsonl", public=True) == ("half ? a face",)
    for wrong in ("{", "[1]"):
        (private / "metadata.jsonl").write_text(wrong)
        with pytest.raises(ValueError, match="in row 1 of"):
            read(private / "metadata.jsonl", public=True)


def test_captions_in_the_layout_of_a_known_data_set_are_refused(tmp_path) -> None:
    coco, celeba = tmp_path / "coco", tmp_path / "renamed"
    for folder in (coco / "annotations", coco / "train2017", celeba / "image"):
        folder.mkdir(parents=True)
    (celeba / "text" / "celeba-caption").mkdir(parents=True)
    (coco / "annotations" / "captions_train2017.json").write_text('{\n"caption": "a secret"\n}')
    (coco / "annotations" / "captions.txt").write_text("a secret")
    (celeba / "text" / "celeba-caption" / "0.txt").write_text("a secret")
    (celeba / "image" / "0.jpg").write_bytes(b"")
    for source in (
        coco / "annotations" / "captions.txt",
        coco / "annotations" / "captions_train2017.json",
        celeba / "text" / "celeba-caption" / "0.txt",
    ):
        with pytest.raises(ValueError, match="captions are private too"):
            read(source)
