"""Uploads of captioned pictures: what is taken, and every bad kind, of which nothing stays."""

import io
import itertools
import json
import os
import re
import stat
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from dpwg.data import Records, open_records
from dpwg.data.upload import UploadLimits, unpack_upload

LIMITS = UploadLimits(
    records=8,
    entries=20,
    file_bytes=100_000,
    total_bytes=150_000,
    side=2_000,
    pixels=1_000_000,
    total_pixels=1_500_000,
    caption_characters=50,
)


def picture(shade: int = 0, kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 90, 200)).save(file, kind)
    return file.getvalue()


def rows(*names_and_texts: tuple[object, object]) -> bytes:
    return "\n".join(
        json.dumps({"file_name": name, "text": text}) for name, text in names_and_texts
    ).encode()


GOOD = {"a.png": picture(1), "b.jpg": picture(2, "JPEG"), "metadata.jsonl": b""}
GOOD["metadata.jsonl"] = rows(("a.png", "first"), ("b.jpg", "second"), ("a.png", "the first"))


def zipped(path, files, **options):
    with zipfile.ZipFile(path, "w", **{"compression": zipfile.ZIP_DEFLATED, **options}) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def unpacked(tmp_path, *files) -> Records:
    count = unpack_upload(files, tmp_path / "work" / "mine", LIMITS)
    records = open_records(str(tmp_path / "work" / "mine"))
    assert len(records) == count
    return records


def refused(tmp_path, message, *files) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        unpack_upload(files, tmp_path / "work" / "mine", LIMITS)
    assert str(tmp_path) not in str(error.value)
    assert sorted(tmp_path.rglob("*")) in (before, sorted([*before, tmp_path / "work"]))


@pytest.mark.parametrize("top", ["", "photos/"])
def test_a_zip_becomes_records(tmp_path, top):
    files = {top + name: content for name, content in GOOD.items()}
    files |= {"__MACOSX/._a.png": b"junk", top + "notes.txt": b"x", top + "more/": b""}
    records = unpacked(tmp_path, zipped(tmp_path / "a.zip", files))
    assert [record.captions for record in records] == [("first", "the first"), ("second",)]
    assert records[0].image().shape == (128, 128, 3)
    assert (records[0].image() == (1, 90, 200)).all()
    kept = {path.name for path in (tmp_path / "work" / "mine").iterdir()}
    assert kept == {"000000.png", "000001.png", "metadata.jsonl"}


def test_loose_files_and_csv_in_utf8_with_a_mark_are_taken(tmp_path):
    table = '\ufefffile_name,text\r\na.png,"ünï, 🎈"\r\n'
    (tmp_path / "metadata.csv").write_text(table, "utf-8")
    (tmp_path / "a.png").write_bytes(picture())
    records = unpacked(tmp_path, tmp_path / "metadata.csv", tmp_path / "a.png")
    assert records[0].captions == ("ünï, 🎈",)


def test_pictures_in_folders_are_taken(tmp_path):
    files = {
        "x/train/1.webp": picture(1, "WEBP"),
        "x/metadata.jsonl": rows(("train/1.webp", "one")),
    }
    assert len(unpacked(tmp_path, zipped(tmp_path / "a.zip", files))) == 1


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "..\\evil.png"]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    message = "absolute path" if name[0] in "/C" else "a plain name"
    for extra in (name, f"{name}/"):
        refused(tmp_path, message, zipped(tmp_path / "a.zip", GOOD | {extra: b"x"}))
    listed = GOOD | {"metadata.jsonl": rows((name, "it"))}
    refused(tmp_path, message, zipped(tmp_path / "a.zip", listed))


def test_links_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", GOOD)
    info = zipfile.ZipInfo("c.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    refused(tmp_path, "no links in the zip, found 'c.png'", path)


def test_a_password_is_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", GOOD)
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(mark) + place] |= 1
    path.write_bytes(content)
    refused(tmp_path, "no password, found one on 'a.png'", path)


def test_bombs_are_stopped_while_they_unpack(tmp_path):
    big = GOOD | {"a.png": bytes(50_000_000)}
    path = zipped(tmp_path / "a.zip", big)
    assert path.stat().st_size < LIMITS.file_bytes
    refused(tmp_path, "'a.png' to have at most 0 MB", path)
    content = path.read_bytes()
    for claimed in (10, 2**31):  # a header that lies
        lie = content.replace(struct.pack("<L", 50_000_000), struct.pack("<L", claimed))
        assert lie != content
        path.write_bytes(lie)
        refused(tmp_path, "'a.png'", path)
    metadata = GOOD | {"metadata.jsonl": bytes(50_000_000)}
    refused(tmp_path, "'metadata.jsonl' to have at most", zipped(tmp_path / "a.zip", metadata))
    noise = np.random.default_rng(0).integers(0, 256, (3, 150, 150, 3), np.uint8)
    many = {}
    for number, pixels in enumerate(noise):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        many[f"{number}.png"] = file.getvalue()
    many["metadata.jsonl"] = rows(*((f"{number}.png", "x") for number in range(3)))
    refused(tmp_path, "unpacked, found more up to '2.png'", zipped(tmp_path / "a.zip", many))


def test_too_many_entries_are_refused_before_they_are_listed(tmp_path):
    many = GOOD | {f"{number}.txt": b"" for number in range(LIMITS.entries)}
    refused(tmp_path, "at most 20 entries, found 23", zipped(tmp_path / "a.zip", many))
    many = GOOD | {f"{number}.txt": b"" for number in range(300)}
    refused(tmp_path, "at most 20 entries; pack fewer", zipped(tmp_path / "a.zip", many))
    loose = [tmp_path / f"{number}.png" for number in range(LIMITS.entries + 1)]
    refused(tmp_path, "at most 20 files, found 21", *loose)


def test_other_packings_and_damaged_zips_are_refused(tmp_path):
    refused(tmp_path, "stored or deflated", zipped(tmp_path / "a.zip", GOOD, compression=14))
    path = zipped(tmp_path / "a.zip", GOOD)
    content = bytearray(path.read_bytes())
    place = content.find(b"IDAT") + 4 if b"IDAT" in content else 45
    content[place] ^= 0xFF
    path.write_bytes(content)
    refused(tmp_path, "'a.png' is damaged in the zip", path)
    path.write_bytes(bytes(content[: len(content) // 2]))
    refused(tmp_path, "one whole zip", path)
    path.write_bytes(
        os.urandom(100) + b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, 9, 9, 99, 9, 0)
    )
    refused(tmp_path, "damaged or cut off", path)


def test_names_given_twice_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", GOOD)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.png", picture(9))
    refused(tmp_path, "every name once in the zip, found 'a.png' twice", path)
    (tmp_path / "x").mkdir()
    refused(tmp_path, "found 'a.png' twice", tmp_path / "a.png", tmp_path / "x" / "a.png")


def test_the_same_picture_or_row_twice_is_refused(tmp_path):
    files = {"a.png": picture(), "b.png": picture(), "metadata.jsonl": b""}
    files["metadata.jsonl"] = rows(("a.png", "x"), ("b.png", "y"))
    refused(tmp_path, "found 'b.png' to be 'a.png' again", zipped(tmp_path / "a.zip", files))
    twice = GOOD | {"metadata.jsonl": rows(("a.png", "x"), ("b.jpg", "y"), ("a.png", "x"))}
    refused(tmp_path, "different texts for 'a.png'", zipped(tmp_path / "a.zip", twice))


def header(width: int, height: int) -> bytes:
    whole = picture()
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + whole[24:29]
    return whole[:12] + head + zlib.crc32(head).to_bytes(4, "big") + whole[33:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(30_000, 30_000), "at most 1 million pixels"),
        (header(30_000, 20), "sides of at most 2,000 pixels, found 30,000×20"),
        (header(2_000, 600), "found 2,000×600"),
        (picture()[:-30], "damaged or cut off"),
        (picture()[:20], "'a.png': "),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "found another kind of file"),
        (b"", "found another kind of file"),
        (b"MZ" + bytes(200), "found another kind of file"),
        (picture(kind="JPEG"), "Expected PNG, as it is named, found JPEG"),
        (picture(kind="GIF"), "found another kind of file"),
    ],
    ids=itertools.count(),
)
def test_pictures_that_are_none_are_refused_by_name(tmp_path, content, message):
    path = zipped(tmp_path / "a.zip", GOOD | {"a.png": content})
    refused(tmp_path, message, path)
    refused(tmp_path, "'a.png': ", path)


def test_all_pictures_together_are_bounded(tmp_path):
    files = {f"{n}.png": picture(n, size=(900, 900)) for n in range(2)}
    files["metadata.jsonl"] = rows(("0.png", "x"), ("1.png", "y"))
    refused(tmp_path, "in all pictures together", zipped(tmp_path / "a.zip", files))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b"", "at least one row"),
        (rows(("a.png", "x")), "Expected a row for 'b.jpg' in metadata.jsonl"),
        (rows(("a.png", "x"), ("c.png", "y")), "'c.png' (row 2 of metadata.jsonl) in the upload"),
        (rows(("a.png", "")), "Expected a text for 'a.png' in row 1"),
        (rows(("a.png", " \t")), "Expected a text"),
        (rows(("a.png", 7)), "Expected a text"),
        (rows((None, "x")), "Expected a file_name in row 1"),
        (rows(("a.png", "x" * 51)), "at most 50 characters in row 1"),
        (rows(("a.svg", "x")), "'a.svg' (row 1 of metadata.jsonl) to end in .png"),
        (rows(*(("a.png", str(n)) for n in range(9))), "at most 8 rows"),
        (b"[1]", "file_name and text in row 1"),
        (b"{", "Expected JSON in row 1"),
        (b"[" * 90_000, "Expected JSON in row 1"),
        (b"9" * 90_000, "Expected JSON in row 1"),
        ("ein Bäcker".encode("latin-1"), "'metadata.jsonl' in UTF-8"),
        (rows(("a.png", "x")).decode().encode("utf-16"), "in UTF-8"),
    ],
    ids=itertools.count(),
)
def test_bad_metadata_is_refused_by_row(tmp_path, metadata, message):
    path = zipped(tmp_path / "a.zip", GOOD | {"metadata.jsonl": metadata})
    refused(tmp_path, message, path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"name,text\na.png,x\n", "columns file_name and text"),
        (b'file_name,text\n"a.png,x\n', "Expected CSV in row"),
        (b"file_name,text\na.png\n", "Expected a text for 'a.png' in row 2"),
        (b"file_name,text\n" + b"x" * 99_000 + b",y\n", "to end in .png"),
        ("file_name,text\na.png,é\n".encode("latin-1"), "in UTF-8, found another encoding at"),
    ],
    ids=itertools.count(),
)
def test_bad_tables_are_refused_by_row(tmp_path, table, message):
    files = {"a.png": picture(), "metadata.csv": table}
    refused(tmp_path, message, zipped(tmp_path / "a.zip", files))


def test_metadata_must_be_there_once(tmp_path):
    refused(tmp_path, "found neither", zipped(tmp_path / "a.zip", {"a.png": picture()}))
    both = GOOD | {"metadata.csv": b"file_name,text\n"}
    refused(tmp_path, "found both", zipped(tmp_path / "a.zip", both))
    deep = {f"x/y/{name}": content for name, content in GOOD.items()}
    refused(tmp_path, "found neither", zipped(tmp_path / "a.zip", deep))
    refused(tmp_path, "found neither")
