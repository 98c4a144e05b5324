"""Uploads of captioned pictures: what is taken, and every bad kind, of which nothing stays."""

import itertools
import os
import stat
import struct
import zipfile
import zlib

import numpy as np
import pytest
from pictures import encoded, plain, put, rows
from PIL import Image, PngImagePlugin

from dpwg.data import Records, open_records
from dpwg.data.records import MAX_CAPTION_CHARACTERS
from dpwg.data.upload import UploadLimits, unpack_upload

LIMITS = UploadLimits(
    records=8, entries=20, file_bytes=100_000, total_bytes=150_000, side=2_000, pixels=1_000_000,
    total_pixels=1_500_000,
)  # fmt: skip


def picture(shade: int = 0, kind: str = "PNG", size: tuple[int, int] = (40, 30), **more) -> bytes:
    return plain((shade, 90, 200), kind, size, **more)


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


def refused(tmp_path, *files, names: str = "") -> None:
    """Refused in words that name what is wrong and no path, and nothing is left behind."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"\w") as error:
        unpack_upload(files, tmp_path / "work" / "mine", LIMITS)
    assert names in str(error.value)
    assert str(tmp_path) not in str(error.value)
    assert sorted(tmp_path.rglob("*")) in (before, sorted([*before, tmp_path / "work"]))


def refused_zip(tmp_path, files, names: str = "", **options) -> None:
    refused(tmp_path, zipped(tmp_path / "a.zip", files, **options), names=names)


@pytest.mark.parametrize("top", ["", "photos/"])
def test_a_zip_becomes_records(tmp_path, top):
    files = {top + name: content for name, content in GOOD.items()}
    files |= {"__MACOSX/._a.png": b"junk", top + "notes.txt": b"x", top + "more/": b""}
    records = unpacked(tmp_path, zipped(tmp_path / "a.zip", files))
    assert [record.captions for record in records] == [("first", "the first"), ("second",)]
    assert (records[0].image() == np.full((128, 128, 3), (1, 90, 200))).all()
    folder = tmp_path / "work" / "mine"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    names = ("000000.png", "000001.png", "metadata.jsonl")
    assert modes == dict.fromkeys(names, 0o600)


def test_loose_files_and_csv_in_utf8_with_a_mark_are_taken(tmp_path):
    table = '\ufefffile_name,text\r\na.png,"ünï, 🎈"\r\n'
    files = put(tmp_path / "metadata.csv", table), put(tmp_path / "a.png", picture())
    assert unpacked(tmp_path, *files)[0].captions == ("ünï, 🎈",)


def test_names_as_windows_and_macos_write_them_are_found(tmp_path):
    files = {"x\\train\\1.webp": picture(1, "WEBP"), "x/e\u0301.png": picture(2)}
    files["x/metadata.jsonl"] = rows(("train\\1.webp", "one"), ("é.png", "two"))
    assert len(unpacked(tmp_path, zipped(tmp_path / "a.zip", files))) == 2


def test_a_phones_jpeg_a_generators_png_and_long_captions_are_taken(tmp_path):
    phone = picture(3, "MPO", save_all=True, append_images=[Image.new("RGB", (40, 30))])
    settings = PngImagePlugin.PngInfo()
    settings.add_itxt("workflow", "x" * 3_000_000, zip=True)
    files = {"a.jpg": phone, "b.png": picture(4, pnginfo=settings), "c.png": picture(5, "JPEG")}
    files["metadata.jsonl"] = rows(("a.jpg", "a"), ("b.png", "b"), ("c.png", "c" * 9_000))
    records = unpacked(tmp_path, zipped(tmp_path / "a.zip", files))
    shades = [int(records[i].image()[9, 9, 0]) for i in range(3)]
    assert shades == pytest.approx([3, 4, 5], abs=3)
    assert len(records[2].captions[0]) == MAX_CAPTION_CHARACTERS


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "..\\evil.png"]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    for extra in (name, f"{name}/"):
        refused_zip(tmp_path, GOOD | {extra: b"x"}, "evil.png")
    refused_zip(tmp_path, GOOD | {"metadata.jsonl": rows((name, "it"))}, "evil.png")


def test_links_and_passwords_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", GOOD)
    content = bytearray(path.read_bytes())
    info = zipfile.ZipInfo("c.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    refused(tmp_path, path, names="c.png")
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(mark) + place] |= 1
    path.write_bytes(content)
    refused(tmp_path, path, names="a.png")


def test_bombs_are_stopped_while_they_unpack(tmp_path):
    path = zipped(tmp_path / "a.zip", GOOD | {"a.png": bytes(50_000_000)})
    content = path.read_bytes()
    assert len(content) < LIMITS.file_bytes
    for claimed in (50_000_000, 10, 2**31):  # headers that lie
        put(path, content.replace(struct.pack("<L", 50_000_000), struct.pack("<L", claimed)))
        refused(tmp_path, path, names="'a.png'")
    refused_zip(tmp_path, GOOD | {"metadata.jsonl": bytes(50_000_000)}, "metadata.jsonl")
    noise = np.random.default_rng(0).integers(0, 256, (3, 150, 150, 3), np.uint8)
    for pictures in (
        [picture(n, size=(900, 900)) for n in range(2)],  # too many pixels together
        [encoded(Image.fromarray(pixels)) for pixels in noise],  # too many bytes together
    ):
        many = {f"{n}.png": content for n, content in enumerate(pictures)}
        listed = {"metadata.jsonl": rows(*((name, "x") for name in many))}
        refused_zip(tmp_path, many | listed, f"'{len(many) - 1}.png'")


def test_too_many_entries_are_refused_before_they_are_listed(tmp_path):
    for count in (LIMITS.entries, 300):
        many = GOOD | {f"{number}.txt": b"" for number in range(count)}
        refused_zip(tmp_path, many, "at most 20")
    loose = [tmp_path / f"{number}.png" for number in range(LIMITS.entries + 1)]
    refused(tmp_path, *loose, names="at most 20")


def test_other_packings_and_damaged_zips_are_refused(tmp_path):
    refused_zip(tmp_path, GOOD, compression=14)
    path = zipped(tmp_path / "a.zip", GOOD)
    content = bytearray(path.read_bytes())
    content[content.find(b"IDAT") + 4 if b"IDAT" in content else 45] ^= 0xFF
    path.write_bytes(content)
    refused(tmp_path, path, names="'a.png'")
    end = b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, 9, 9, 99, 9, 0)
    for damaged in (bytes(content[: len(content) // 2]), os.urandom(100) + end):
        path.write_bytes(damaged)
        refused(tmp_path, path, names="zip")


def test_a_name_or_a_picture_twice_is_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", GOOD)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.png", picture(9))
    refused(tmp_path, path, names="'a.png'")
    refused(tmp_path, tmp_path / "a.png", tmp_path / "x" / "a.png", names="'a.png'")
    listed = {"metadata.jsonl": rows(("a.png", "x"), ("b.png", "y"))}
    twice = {"a.png": picture(), "b.png": picture()}
    refused_zip(tmp_path, twice | listed, "'b.png' to be 'a.png'")


def header(width: int, height: int) -> bytes:
    whole = picture()
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + whole[24:29]
    return whole[:12] + head + zlib.crc32(head).to_bytes(4, "big") + whole[33:]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (header(30_000, 30_000), "at most 1 million pixels"),
        (header(30_000, 20), "30,000×20"),
        (picture()[:-30], "damaged"),
        (picture()[:20], ""),
        (b"MZ" + bytes(200), "another kind of file"),
        (picture(kind="GIF"), "another kind of file"),
    ],
    ids=itertools.count(),
)
def test_pictures_that_are_none_are_refused_by_name(tmp_path, content, told):
    refused_zip(tmp_path, GOOD | {"a.png": content}, told)
    refused_zip(tmp_path, GOOD | {"a.png": content}, "'a.png': ")


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ("", "metadata.jsonl"),
        (rows(("a.png", "x")), "'b.jpg'"),
        (rows(("a.png", "x"), ("c.png", "y")), "'c.png' (row 2 of metadata.jsonl)"),
        (rows(("a.png", " \t"), ("b.jpg", "x")), "'a.png' in row 1"),
        (rows((None, "x")), "row 1"),
        (rows(("a.svg", "x")), "'a.svg' (row 1 of metadata.jsonl)"),
        (rows(*(("a.png", str(n)) for n in range(9))), "at most 8 rows"),
        (b"[" * 90_000, "row 1"),
        (b"9" * 90_000, "row 1"),
        (rows(("a.png", "x")).encode("utf-16"), "UTF-8"),
    ],
    ids=itertools.count(),
)
def test_bad_metadata_is_refused_by_row(tmp_path, metadata, told):
    refused_zip(tmp_path, GOOD | {"metadata.jsonl": metadata}, told)


def test_metadata_must_be_there_once_and_whole(tmp_path):
    table = b"file_name,text\n" + b"x" * 99_000 + b",y\n"
    refused_zip(tmp_path, {"a.png": picture(), "metadata.csv": table}, "row 2")
    refused_zip(tmp_path, {"a.png": picture()}, "metadata.jsonl")
    refused_zip(tmp_path, GOOD | {"metadata.csv": b"file_name,text\n"}, "both")
    deep = {f"x/y/{name}": content for name, content in GOOD.items()}
    refused_zip(tmp_path, deep, "metadata.jsonl")
    refused(tmp_path, names="metadata.jsonl")
