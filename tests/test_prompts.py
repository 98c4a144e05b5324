"""Captions to draw from: whose they may be, and how they are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pictures import put

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


@pytest.mark.parametrize("number", ["", "0", "-1", "1.5", "²", "99999999999"])
def test_how_many_public_captions_is_a_number(number: str) -> None:
    with pytest.raises(ValueError, match=r"10,000,000"):
        read(f"public:{number}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" \n\n", "at least one caption"),
        (b"ok\n" + b"x" * (MAX_CAPTION_CHARACTERS + 1), "found 501 in line 2"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_what_has_no_captions_is_refused(tmp_path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(put(tmp_path / "folder" / "a.txt", content))
    for none in (
        tmp_path / "folder",
        tmp_path / "folder" / "none.txt",
    ):  # not tmp_path, whose parent tests share
        with pytest.raises(OSError, match=none.name):
            read(none)


def test_a_file_has_a_caption_a_line_in_any_editors_form(tmp_path) -> None:
    file = put(tmp_path / "a.txt", "\ufeffa face\r\n\r\n  été, 笑顔 \nlast")
    assert read(file) == ("a face", "été, 笑顔", "last")


@pytest.fixture
def private(tmp_path, image_folder) -> Path:
    """A folder of captioned images, as a private run takes it."""
    shutil.copytree(image_folder, tmp_path / "folder")
    put(tmp_path / "folder" / "captions.txt", "image 3")
    put(tmp_path / "folder" / "metadata.csv", "file_name,text\n0.png,image 0\n")
    return tmp_path / "folder"


def test_a_data_sets_own_captions_are_refused_with_the_reason(
    private, tmp_path, monkeypatch
) -> None:
    (tmp_path / "link.txt").symlink_to(private / "metadata.jsonl")
    coco, celeba = tmp_path / "coco" / "annotations", tmp_path / "renamed"
    put(celeba / "image" / "0.jpg", "")
    put(tmp_path / "10_cats" / "0.png", "")
    table = put(coco / "captions_train2017.json", '{\n"caption": "a secret"\n}')
    monkeypatch.chdir(private)
    for source in (
        private / "metadata.jsonl",
        private / "metadata.csv",
        private / "captions.txt",
        private,
        Path("metadata.jsonl"),
        Path("captions.txt"),
        tmp_path / "link.txt",
        table,
        put(tmp_path / "Metadata.JSONL", "{}"),
        put(coco / "captions.txt", "a secret"),
        put(celeba / "text" / "celeba-caption" / "0.txt", "a secret"),
        put(tmp_path / "10_cats" / "0.txt", "a secret"),
        put(tmp_path / "all.txt", "a secret"),
    ):
        with pytest.raises(ValueError, match="captions are private too, and the data set would"):
            read(source)


@pytest.mark.parametrize("folder", ["patients", "patients-50000", "patients/2024/notes"])
def test_the_set_that_the_card_names_is_refused(tmp_path, folder: str) -> None:
    path = put(tmp_path / folder / "captions.txt", "a man with a scar")
    (tmp_path / "open.txt").symlink_to(path)
    for source in (path, path.parent, tmp_path / "open.txt"):
        with pytest.raises(ValueError, match="which the checkpoint's card names as private"):
            read(source)
    assert read(path, public=True) == ("a man with a scar",)
    for other in ("patients-of-others", "outpatients", "Patients2"):
        assert read(put(tmp_path / other / "captions.txt", "a face")) == ("a face",)


def test_a_stray_archive_above_does_not_make_captions_private(tmp_path) -> None:
    file = put(tmp_path / "notes" / "captions.txt", "a face")
    put(tmp_path / "backup.tar", "")
    put(tmp_path / "sales.parquet", "")
    assert read(file) == ("a face",)
    put(tmp_path / "notes" / "shard.tar", "")
    with pytest.raises(ValueError, match="captions are private too"):
        read(file)


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
