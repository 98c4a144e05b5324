"""Where records come from: rendered sets, folders, one interface for all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from dpwg.data.cache import RenderedRecords, render_set, set_folder
from dpwg.data.faces import TEST_RECORDS, TRAIN_RECORDS, face
from dpwg.data.folder import FolderRecords
from dpwg.data.public import (
    PUBLIC_RECORDS,
    PUBLIC_TEST_RECORDS,
    TUNING_RECORDS,
    TUNING_TEST_RECORDS,
    public_image,
    tuning_image,
)
from dpwg.data.records import Record, Records

__all__ = ["RENDERED_SETS", "FolderRecords", "Record", "Records", "open_records", "render"]

_MAKERS: dict[str, tuple[int, Callable[[int], Record]]] = {
    "faces-train": (TRAIN_RECORDS, functools.partial(face, "train")),
    "faces-test": (TEST_RECORDS, functools.partial(face, "test")),
    "public-train": (PUBLIC_RECORDS, functools.partial(public_image, "train")),
    "tuning-train": (TUNING_RECORDS, functools.partial(tuning_image, "train")),
    "tuning-test": (TUNING_TEST_RECORDS, functools.partial(tuning_image, "test")),
    "public-test": (PUBLIC_TEST_RECORDS, functools.partial(public_image, "test")),
}
RENDERED_SETS = {name: count for name, (count, _) in _MAKERS.items()}
"""The rendered sets and how many records each has."""


def render(name: str, *, count: int | None = None, root: Path | None = None) -> Iterator[int]:
    """Render one of `RENDERED_SETS`, or its first `count` records; yields how many are done."""
    full, make = _maker(name)
    return render_set(name, count or full, make, root=root)


def open_records(name_or_folder: str, *, count: int | None = None) -> Records:
    """A rendered set by name, checked by digest, or a folder of captioned images."""
    if name_or_folder in _MAKERS:
        folder = set_folder(name_or_folder, count or _MAKERS[name_or_folder][0])
        if not folder.exists():
            raise FileNotFoundError(
                f"{folder} is not there; run `python -m dpwg data {name_or_folder}` first."
            )
        return RenderedRecords(folder)
    if Path(name_or_folder).is_dir():
        return FolderRecords(Path(name_or_folder))
    raise ValueError(
        f"Expected data={name_or_folder!r} to be a folder or in {sorted(RENDERED_SETS)}."
    )


def _maker(name: str) -> tuple[int, Callable[[int], Record]]:
    if name not in _MAKERS:
        raise ValueError(f"Expected set={name!r} in {sorted(RENDERED_SETS)}.")
    return _MAKERS[name]
