"""The photograph sets' official files, read as rows with the columns of their Parquet files."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpwg.data.files import columns_of, lines_of
from dpwg.data.pictures import decode, png

CELEBA_SIZE = (178, 218)
CELEBA_ROWS = (20, 198)
LAYOUTS = {
    "celeba": ("celeba", "CelebA", "CelebA/Img", "Img", "img_align_celeba"),
    "utkface": ("UTKFace", "UTKFace/UTKFace", "*_[01]_[0-4]_*.jpg"),
    "tiny-imagenet": ("tiny-imagenet-200", "tiny-imagenet-200/tiny-imagenet-200", "words.txt"),
}
"""Subfolders where a set's official files may be, and which file shows that they are there."""
_UTKFACE_NAME = re.compile(r"(\d{1,3})_([01])_[0-4]_.*\.jpg")


class Row(NamedTuple):
    """What a source tells of one photograph: its columns, how to read its image, and its stamp."""

    columns: dict[str, Any]
    read: Callable[[], bytes]
    stamp: tuple[int, ...]


def official_rows(folder: Path, kind: str, split: str) -> Iterator[Row]:
    """The rows of a split of one of `LAYOUTS`, out of the folder or its subfolders.

    FileNotFoundError where the layout is not there. Of CelebA those of `celeba_numbers` whose image
    is there, in their order; of the others all, in an order drawn from the files' names.
    """
    *names, mark = LAYOUTS[kind]
    for place in (folder, *(folder / name for name in names)):
        if any(place.glob(mark)):
            return _READERS[kind](place, split)
    raise FileNotFoundError(
        f"Expected {kind}-*.parquet or {mark} in {folder}, or the latter in its folder "
        f"{' or '.join(names)}; DPWG_PHOTOS names the folder."
    )


def celeba_numbers(name: str) -> list[int]:
    """The numbers of the images in `celeba-train` or `celeba-test`, ascending: 7 is 000007.jpg."""
    packed = json.loads(Path(__file__).with_name("photo_numbers.json").read_text())[name]
    bits = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    return np.flatnonzero(np.unpackbits(bits)).tolist()


def _row(columns: dict[str, Any], path: Path, read: Callable[[], bytes] | None = None) -> Row:
    status = path.stat()
    return Row(columns, read or path.read_bytes, (status.st_size, status.st_mtime_ns))


def _celeba_files(place: Path, split: str) -> Iterator[Row]:
    images = place / "img_align_celeba"
    if (images / images.name).is_dir():
        images /= images.name
    files = {f"{number:06}.jpg": number for number in celeba_numbers(f"celeba-{split}")}
    persons_file, traits_file = (
        _celeba_table(place, name) for name in ("identity_CelebA.txt", "list_attr_celeba.txt")
    )
    names = [*lines_of(traits_file), "", ""][1].split()  # behind a line with the count
    persons = _rows_of(files, columns_of(persons_file, 0, 2))
    traits = _rows_of(files, columns_of(traits_file, 2, 1 + len(names)))
    for name in files:
        path = images / name
        if not path.is_file():
            continue
        if not (name in persons and name in traits):
            raise ValueError(f"Expected {name} in {persons_file} and in {traits_file}.")
        columns = {"celeba_number": files[name], "identity": int(persons[name][0])}
        columns |= {t: value == "1" for t, value in zip(names, traits[name], strict=True)}
        yield _row(columns, path, functools.partial(_celeba_crop, path))


def _celeba_table(place: Path, name: str) -> Path:
    for folder in (place, place / "Anno", place.parent / "Anno"):  # images may be in Img beside it
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"Expected {name} in {place}, or in a folder Anno there.")


def _rows_of(names: Collection[str], rows: Iterable[list[str]]) -> dict[str, list[str]]:
    return {name: values for name, *values in rows if name in names}


def _celeba_crop(path: Path) -> bytes:
    pixels = decode(path.read_bytes())
    if pixels.shape[1::-1] != CELEBA_SIZE:
        raise ValueError(f"Expected {CELEBA_SIZE} pixels in {path}, found {pixels.shape[1::-1]}.")
    return png(pixels[slice(*CELEBA_ROWS)], level=1)


def _drawn(paths: Iterable[Path]) -> list[Path]:
    """In an order that is random as to content, so that the first few resemble all of them."""
    files = (path for path in paths if path.is_file())
    return sorted(files, key=lambda path: hashlib.sha256(path.name.encode()).digest())


def _utkface_files(place: Path, _: str) -> Iterator[Row]:
    for path in _drawn(place.iterdir()):
        if found := _UTKFACE_NAME.fullmatch(path.name):
            yield _row({"age": int(found[1]), "gender": ("man", "woman")[int(found[2])]}, path)


def _tiny_files(place: Path, split: str) -> Iterator[Row]:
    labels = dict(line.split("\t", 1) for line in lines_of(place / "words.txt") if "\t" in line)
    if split == "val":
        rows = map(str.split, lines_of(place / "val" / "val_annotations.txt"))
        found = {place / "val" / "images" / row[0]: row[1] for row in rows if len(row) > 1}
    else:
        paths = (place / "train").glob("*/images/*.JPEG")
        found = {path: path.parents[1].name for path in paths}
    for path in _drawn(found):
        if (wnid := found[path]) not in labels:
            raise ValueError(f"Expected {wnid} in {place}/words.txt, the class of {path.name}.")
        yield _row({"wnid": wnid, "label": labels[wnid]}, path)


_READERS = {"celeba": _celeba_files, "utkface": _utkface_files, "tiny-imagenet": _tiny_files}
