"""Which format a data set on disk has, and its records.

The rule: FORMAT:PATH is read as that format; with a path alone, exactly one format's own files must
be there. A path is a folder, or one file of it where several splits lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dpwg.data import celeba, coco, fashion, folder, parquet, webdataset
from dpwg.data.files import FileRecords


class Format(NamedTuple):
    """How a format is told, by which files, and how it is read."""

    found_in: Callable[[Path], bool]
    read: Callable[[Path], FileRecords]
    marks: str


FORMATS = {
    "folder": Format(
        folder.found_in, folder.read, "metadata.jsonl or .csv, or 0.txt beside each 0.png"
    ),
    "coco": Format(coco.found_in, coco.read, "annotations/captions_*.json"),
    "celeba": Format(celeba.found_in, celeba.read, "text/celeba-caption/*.txt and image/*.jpg"),
    "webdataset": Format(webdataset.found_in, webdataset.read, "*.tar"),
    "parquet": Format(parquet.found_in, parquet.read, "*.parquet or data/*.parquet"),
    "fashion": Format(fashion.found_in, fashion.read, "train-images-idx3-ubyte.gz"),
}


def is_on_disk(data: str) -> bool:
    """Whether `data` is a path that is there, with a format before it or not."""
    return _parts(data)[1].exists()


def open_files(data: str) -> FileRecords:
    """The records at PATH or FORMAT:PATH, with those that have no image or no caption.

    Raises ValueError for a path in no format's layout, or in that of several.
    """
    form, path = _parts(data)
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there.")
    found = [form] if form else [name for name, own in FORMATS.items() if own.found_in(path)]
    if len(found) != 1:
        marks = "; ".join(f"{name}: {known.marks}" for name, known in FORMATS.items())
        raise ValueError(
            f"Expected the files of one format in {path}, found those of "
            f"{', '.join(found) or 'none'} ({marks}); of several say which, as in coco:{path}."
        )
    return FORMATS[found[0]].read(path)


def _parts(data: str) -> tuple[str | None, Path]:
    form, colon, path = data.partition(":")
    return (form, Path(path)) if colon and form in FORMATS else (None, Path(data))
