"""The photograph sets' official files, read as rows with the columns of their Parquet files."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dpwg.data.decode import decode
from dpwg.data.files import read_text

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


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return (status.st_size, status.st_mtime_ns)


def _celeba_files(place: Path, split: str) -> Iterator[Row]:
    images = place / "img_align_celeba"
    if (images / images.name).is_dir():
        images /= images.name
    files = {f"{number:06}.jpg": number for number in celeba_numbers(f"celeba-{split}")}
    persons = _celeba_table(place, "identity_CelebA.txt", files)
    traits = _celeba_table(place, "list_attr_celeba.txt", files)
    names = traits.get("", [])
    there = set(os.listdir(images))
    for name, number in files.items():
        if name not in there:
            continue
        person, values = persons.get(name, []), traits.get(name, [])
        if len(person) != 1 or not values or len(values) != len(names):
            raise ValueError(
                f"Expected of {name} a number in identity_CelebA.txt and {len(names)} in "
                f"list_attr_celeba.txt, in {place}; found {len(person)} and {len(values)}."
            )
        columns = {"celeba_number": number, "identity": int(person[0])}
        columns |= {trait: value == "1" for trait, value in zip(names, values, strict=True)}
        path = images / name
        yield Row(columns, functools.partial(_celeba_crop, path), _stamp(path))


def _celeba_table(place: Path, name: str, files: dict[str, int]) -> dict[str, list[str]]:
    """The values of each of `files` in one of CelebA's tables, its heading under ""."""
    folders = (place, place / "Anno", place.parent / "Anno")  # images may be in Img beside it
    path = next((f / name for f in folders if (f / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"Expected {name} in {place}, or in a folder Anno there.")
    found: dict[str, list[str]] = {}
    for line in read_text(path).splitlines():
        key, _, values = line.partition(" ")
        if key in files:
            found[key] = values.split()
        elif key and not key.endswith(".jpg"):
            found[""] = line.split()
    return found


def _celeba_crop(path: Path) -> bytes:
    try:
        pixels = decode(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is broken: {error}") from error
    if pixels.shape[1::-1] != CELEBA_SIZE:
        raise ValueError(f"Expected {CELEBA_SIZE} pixels in {path}, found {pixels.shape[1::-1]}.")
    file = io.BytesIO()
    Image.fromarray(pixels[slice(*CELEBA_ROWS)]).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _drawn(paths: Iterable[Path]) -> list[Path]:
    """In an order that is random as to content, so that the first few resemble all of them."""
    return sorted(paths, key=lambda path: hashlib.sha256(path.name.encode()).digest())


def _utkface_files(place: Path, _: str) -> Iterator[Row]:
    for path in _drawn(place / name for name in os.listdir(place)):
        if found := _UTKFACE_NAME.fullmatch(path.name):
            columns = {"age": int(found[1]), "gender": ("man", "woman")[int(found[2])]}
            yield Row(columns, path.read_bytes, _stamp(path))


def _tiny_files(place: Path, split: str) -> Iterator[Row]:
    lines = read_text(place / "words.txt").splitlines()
    labels = dict(line.split("\t", 1) for line in lines if "\t" in line)
    if split == "val":
        rows = map(str.split, read_text(place / "val" / "val_annotations.txt").splitlines())
        found = {place / "val" / "images" / row[0]: row[1] for row in rows if len(row) > 1}
    else:
        paths = (place / "train").glob("*/images/*.JPEG")
        found = {path: path.parents[1].name for path in paths}
    for path in _drawn(path for path in found if path.is_file()):
        wnid = found[path]
        if wnid not in labels:
            raise ValueError(f"Expected {wnid} in {place}/words.txt, the class of {path.name}.")
        yield Row({"wnid": wnid, "label": labels[wnid]}, path.read_bytes, _stamp(path))


_READERS = {"celeba": _celeba_files, "utkface": _utkface_files, "tiny-imagenet": _tiny_files}
