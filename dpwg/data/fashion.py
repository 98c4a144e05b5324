"""Fashion-MNIST from its IDX files, with captions made from the class names.

Xiao et al. 2017, arXiv 1708.07747; Debian's package `dataset-fashion-mnist` puts it where
`FOLDER` says.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dpwg.data.captions import article
from dpwg.data.dataset import DataSet
from dpwg.data.files import Entry, FileRecords
from dpwg.data.pictures import png

FOLDER = Path("/usr/share/datasets/fashion-mnist")
SPLITS = {"train": "train", "test": "t10k"}
CLASSES = (
    *("t-shirt", "trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
TEMPLATES = (
    "A photo of {}.",
    "A grey photo of {}",
    "{} on a black background",
    "A small picture of {}, in grey.",
    "{}, photographed for a shop",
)
MAX_BYTES = 1 << 28
PATTERNS = ("*-images-idx3-ubyte*",)


def read(path: Path, split: str = "train") -> FileRecords:
    """One record an image of a folder's split, or of the split whose image file the path is.

    The wording of a caption follows from its image alone, so that no record depends on others.
    """
    folder = path
    if path.is_file():
        folder, split = path.parent, path.name.partition("-images")[0]
    images = _idx(folder, f"{split}-images-idx3-ubyte", 3)
    labels = _idx(folder, f"{split}-labels-idx1-ubyte", 1)
    if len(images) != len(labels) or (labels >= len(CLASSES)).any():
        raise ValueError(
            f"Expected a label below {len(CLASSES)} of each of {len(images)} images in {folder}."
        )
    names = {own: name for name, own in SPLITS.items()}
    entries = list(_entries(images, labels, split))
    return FileRecords(
        f"fashion-{names.get(split, split)}", entries, "fashion", f"{folder}/{split}-*"
    )


def _entries(images: np.ndarray, labels: np.ndarray, split: str) -> Iterator[Entry]:
    for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        content, own = hashlib.sha256(pixels.tobytes()).digest(), CLASSES[label]
        thing = own if own == "trousers" else article(own)
        caption = TEMPLATES[content[0] % len(TEMPLATES)].format(thing)
        yield Entry(
            name=f"{split}:{index}",
            read=functools.partial(png, pixels),
            stamp=tuple(content),
            texts=(caption[0].upper() + caption[1:],),
            attributes={"class": own},
        )


def _idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """An IDX file of bytes, gzipped or not: two zeros, type 8, dimensions, then sizes and bytes."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if not (plain.is_file() or packed.is_file()):
        raise FileNotFoundError(
            f"Expected {name} or {name}.gz in {folder}; apt-get install dataset-fashion-mnist, or "
            "name a folder that has it."
        )
    try:
        with plain.open("rb") if plain.is_file() else gzip.open(packed) as file:
            content = file.read(MAX_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"Expected a whole gzip file at {packed}: {error}.") from error
    start = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) != start + math.prod(shape):
        raise ValueError(
            f"Expected an IDX file of bytes in {dimensions} dimensions: {folder}/{name}."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


FASHION = DataSet(
    name="fashion",
    title="Fashion: grey photographs of clothes",
    splits=dict.fromkeys(SPLITS),
    open=lambda split, count: read(FOLDER, SPLITS[split]).first(count),
    measures=("attack",),
    terms="MIT",
)
