"""Which format a data set on disk has, and its records.

The rule: FORMAT:PATH is read as that format; with a path alone, exactly one format's own files must
be there. A path is a folder, or one file of it where several splits lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dpwg.data import celeba, coco, fashion, folder, parquet, webdataset
from dpwg.data.files import FileRecords, found


class Format(NamedTuple):
    """How a format is read, and told: by files of these names, or what `found_in` says."""

    read: Callable[[Path], FileRecords]
    marks: tuple[str, ...]
    found_in: Callable[[Path], bool] | None = None

    def is_at(self, path: Path) -> bool:
        return bool(found(path, self.marks)) if self.found_in is None else self.found_in(path)


FORMATS = {
    "folder": Format(folder.read, (*folder.METADATA, "0.txt beside each 0.png"), folder.found_in),
    "coco": Format(coco.read, coco.PATTERNS),
    "celeba": Format(celeba.read, ("text/celeba-caption/*.txt with image/*.jpg",), celeba.found_in),
    "webdataset": Format(webdataset.read, webdataset.PATTERNS),
    "parquet": Format(parquet.read, parquet.PATTERNS),
    "fashion": Format(fashion.read, fashion.PATTERNS),
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
    told = [form] if form else [name for name, own in FORMATS.items() if own.is_at(path)]
    if len(told) != 1:
        marks = "; ".join(f"{name}: {', '.join(own.marks)}" for name, own in FORMATS.items())
        raise ValueError(
            f"Expected the files of one format in {path}, found those of "
            f"{', '.join(told) or 'none'} ({marks}); of several say which, as in coco:{path}."
        )
    return FORMATS[told[0]].read(path)


def _parts(data: str) -> tuple[str | None, Path]:
    form, colon, path = data.partition(":")
    return (form, Path(path)) if colon and form in FORMATS else (None, Path(data))
