"""Photographs: CelebA, which is sensitive, and UTKFace and Tiny-ImageNet, which are public.

Each set is read from its official layout, or from Parquet files made of that. Liu et al. 2015,
arXiv 1411.7766, shown from row 20 to 197 of its aligned images; Zhang et al. 2017, arXiv
1702.08423; Tiny-ImageNet is Stanford's cut of ImageNet.

CelebA's records are the same from both: five images of each of 7,508 persons, and for the test of
928 others, in the order of the images' own numbers, which `photo_numbers.json` lists. The other two
cannot promise this, as their Parquet files do not tell the official names: from the official files
come other records of the same kind, in an order drawn from their names, of Tiny-ImageNet as many
unless `count` says otherwise. Of UTKFace's folder all files are read, also the 708 that its Parquet
leaves out because they are there twice or resemble an image of CelebA.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from dpwg.data.files import Entry, FileRecords
from dpwg.data.grammar import celeba_captions, tiny_imagenet_captions, utkface_captions
from dpwg.data.official import Row, official_rows

PHOTO_SETS = {
    "celeba-train": False,
    "celeba-test": False,
    "utkface-train": True,
    "utkface-test": True,
    "tiny-imagenet-train": True,
    "tiny-imagenet-val": True,
}
"""The photograph sets, and whether each is public."""
VARIABLE = "DPWG_PHOTOS"
UTKFACE_TEST = 20
"""Of this many records in a row, the last is one of `utkface-test`."""
_AT_MOST = {"tiny-imagenet-train": 32_000, "tiny-imagenet-val": 3_000}
SAMPLED = 100
"""Of this many records, one has its captions in the digest."""


def is_public(name: str) -> bool:
    """Whether a name is that of a photograph set which is public; CelebA's never are."""
    return PHOTO_SETS.get(name, False)


def photos_folder() -> Path:
    """The folder of the photograph sets, DPWG_PHOTOS; FileNotFoundError says what to put there."""
    named = os.environ.get(VARIABLE, "")
    if not (named and Path(named).is_dir()):
        raise FileNotFoundError(
            f"Expected {VARIABLE}={named!r} to be a folder: set {VARIABLE} to the one that has "
            "CelebA (img_align_celeba/, list_attr_celeba.txt, identity_CelebA.txt), UTKFace/ or "
            "tiny-imagenet-200/, or Parquet files as celeba-train-*.parquet."
        )
    return Path(named)


def open_photos(name: str, count: int | None = None) -> FileRecords:
    """The records of one of `PHOTO_SETS`, or the first `count`, out of `photos_folder`.

    Parquet files come before an official layout where both are there; of that, records whose image
    is missing are left out. Attributes are `number` and, by set: `person` and CelebA's own 40 ("1"
    or "0"); `age` and `gender`; `label` and `wnid`. ValueError for a `count` that is not there.

    The digest covers names, attributes, a sample of the captions, and of Parquet the images, which
    stay in memory: a copy elsewhere is the same set. Of official files it covers size and time.
    """
    folder, (kind, _, split) = photos_folder(), name.rpartition("-")
    stem = kind if kind == "utkface" else name
    files = sorted(folder.glob(f"{stem}-*.parquet"))
    rows = _parquet_rows(files) if files else official_rows(folder, kind, split)
    numbered = (
        (number, row)
        for number, row in enumerate(rows)
        if kind != "utkface" or (split == "test") == (number % UTKFACE_TEST == UTKFACE_TEST - 1)
    )
    taken = itertools.islice(numbered, _AT_MOST.get(name) if count is None else max(count, 0))
    bare = [_bare_entry(name, number, row) for number, row in taken]
    if count is not None and not 1 <= count == len(bare):
        raise ValueError(f"Expected count={count} from 1 to the number of records of {name}.")
    form, source = ("parquet", f"{folder}/{stem}-*.parquet") if files else (kind, str(folder))
    records = FileRecords(name, bare, form=form, source=source)
    records.entries = [_PhotoEntry(entry, _CAPTIONS[kind]) for entry in bare]
    sample = [entry.captions for entry in records.entries[::SAMPLED]]
    records.digest = hashlib.sha256(f"{records.digest} {sample}".encode()).hexdigest()
    return records


def public_portrait(
    face_HW3: np.ndarray, background_HW3: np.ndarray, rng: random.Random
) -> np.ndarray:
    """A tight face crop at the scale and place of CelebA's faces, before another photograph.

    Both are uint8, squares at best; the result is uint8 (128, 128, 3), mirrored and its background
    blurred half of the time each, as `rng` says.
    """
    side = round(128 * rng.uniform(0.55, 0.68))
    # The eyes are at 37 % of the crop's height and come to row 66, so that it ends before row 125.
    top = round(66 - 0.37 * side + rng.uniform(-3, 3))
    left = round(64 - side / 2 + rng.uniform(-4, 4))
    blurred, mirrored = rng.random() < 0.5, rng.random() < 0.5
    background = Image.fromarray(background_HW3).resize((128, 128), Image.Resampling.LANCZOS)
    if blurred:
        background = background.filter(ImageFilter.GaussianBlur(6))
    face = Image.fromarray(face_HW3).resize((side, side), Image.Resampling.LANCZOS)
    inward = np.minimum(np.arange(side), np.arange(side)[::-1])
    edge = np.clip((inward + 1) / 6, 0, 1)  # five pixels of less than all
    mask = Image.fromarray((255 * np.minimum.outer(edge, edge)).astype(np.uint8))
    background.paste(face, (left, top), mask)
    pixels = np.asarray(background)
    return np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels


Captioner = Callable[[Mapping[str, str]], tuple[str, ...]]


class _PhotoEntry(Entry):
    """An entry that makes its captions when they are asked for: all of CelebA's take 10 s."""

    __slots__ = ("_captioner",)
    _captioner: Captioner

    def __init__(self, bare: Entry, captioner: Captioner) -> None:
        for name in ("name", "read", "stamp", "attributes", "problem"):
            object.__setattr__(self, name, getattr(bare, name))
        object.__setattr__(self, "_captioner", captioner)

    @property
    def captions(self) -> tuple[str, ...]:
        return self._captioner(self.attributes)


def _bare_entry(name: str, position: int, row: Row) -> Entry:
    """A record without its captions; its attributes are its columns, truths as "1" or "0"."""
    attributes = {"number": str(position)}
    for column, value in row.columns.items():
        own = {"celeba_number": "number", "identity": "person"}.get(column, column)
        attributes[own] = str(int(value) if isinstance(value, bool) else value)
    return Entry(
        name=f"{name}:{attributes['number']}",
        read=row.read,
        stamp=row.stamp,
        captions=(),
        attributes=attributes,
    )


def _of_celeba(told: Mapping[str, str]) -> tuple[str, ...]:
    traits = {name: text == "1" for name, text in told.items() if name not in ("number", "person")}
    return celeba_captions(int(told["number"]), traits)


def _of_utkface(told: Mapping[str, str]) -> tuple[str, ...]:
    return utkface_captions(int(told["number"]), int(told["age"]), told["gender"])


def _of_tiny_imagenet(told: Mapping[str, str]) -> tuple[str, ...]:
    return tiny_imagenet_captions(int(told["number"]), told["label"])


_CAPTIONS = {"celeba": _of_celeba, "utkface": _of_utkface, "tiny-imagenet": _of_tiny_imagenet}


def _parquet_rows(files: Iterable[Path]) -> Iterator[Row]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Reading Parquet needs pyarrow: pip install pyarrow.") from error
    for path in files:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1_000):
                for columns in batch.to_pylist():
                    content = columns.pop("image")["bytes"]
                    columns.pop("hq_caption", None)  # the official files do not tell it
                    stamp = int.from_bytes(hashlib.sha256(content).digest()[:8])
                    yield Row(columns, functools.partial(bytes, content), (stamp,))
