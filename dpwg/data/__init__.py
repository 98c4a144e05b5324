"""Where records come from: rendered sets, data sets on disk, one interface for all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from dpwg.data import fashion
from dpwg.data.cache import RenderedRecords, render_set, set_folder
from dpwg.data.faces import TEST_RECORDS, TRAIN_RECORDS, face
from dpwg.data.formats import FORMATS, is_on_disk, open_files
from dpwg.data.photos import PHOTO_SETS, is_public, open_photos
from dpwg.data.public import (
    PUBLIC_MORE_RECORDS,
    PUBLIC_RECORDS,
    PUBLIC_TEST_RECORDS,
    TUNING_RECORDS,
    TUNING_TEST_RECORDS,
    public_image,
    tuning_image,
)
from dpwg.data.public_photos import PUBLIC_PHOTOS, open_public_photos
from dpwg.data.records import Record, Records

__all__ = [
    "PHOTO_SETS",
    "RENDERED_SETS",
    "Record",
    "Records",
    "is_public",
    "open_records",
    "render",
]

_MAKERS: dict[str, tuple[int, Callable[[int], Record]]] = {
    "faces-train": (TRAIN_RECORDS, functools.partial(face, "train")),
    "faces-test": (TEST_RECORDS, functools.partial(face, "test")),
    "public-train": (PUBLIC_RECORDS, functools.partial(public_image, "train")),
    "public-more": (PUBLIC_MORE_RECORDS, functools.partial(public_image, "more")),
    "tuning-train": (TUNING_RECORDS, functools.partial(tuning_image, "train")),
    "tuning-test": (TUNING_TEST_RECORDS, functools.partial(tuning_image, "test")),
    "public-test": (PUBLIC_TEST_RECORDS, functools.partial(public_image, "test")),
}
RENDERED_SETS = {name: count for name, (count, _) in _MAKERS.items()}
"""The rendered sets and how many records each has."""


def render(name: str, *, count: int | None = None, root: Path | None = None) -> Iterator[int]:
    """Render one of `RENDERED_SETS`, or its first `count` records; yields how many are done."""
    full, make = _maker(name)
    _check_count(count, full)
    return render_set(name, count or full, make, root=root)


def open_records(
    data: str,
    *,
    count: int | None = None,
    skip_broken: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Records:
    """A set by its name, or PATH or FORMAT:PATH; rendered sets are checked by digest.

    The names are those of `RENDERED_SETS`, `PHOTO_SETS` and `PUBLIC_PHOTOS`, which can be cut to
    the first `count` records, `fashion-train` and `fashion-test`.

    A data set on disk with records that lack an image or a caption is refused, naming the first;
    with `skip_broken` these are left out, and those whose image does not decode: all of them are
    decoded for it, `progress` is called with how many are done and in all.
    """
    if data in _MAKERS:
        full = _MAKERS[data][0]
        _check_count(count, full)
        folder = set_folder(data, count or full)
        if not folder.exists():
            part = "" if count is None else f" --count {count}"
            raise FileNotFoundError(
                f"{folder} is not there; run `python -m dpwg data {data}{part}` first."
            )
        return RenderedRecords(folder)
    if count is not None and data not in (*PHOTO_SETS, *PUBLIC_PHOTOS):
        raise ValueError(
            f"Expected no count={count} with data={data!r}: all of a data set on disk is taken. "
            "Make a smaller one, or leave the option out."
        )
    if data in PUBLIC_PHOTOS:
        records = open_public_photos(data, count)
    elif data in PHOTO_SETS:
        records = open_photos(data, count)
    elif data in fashion.SPLITS:
        records = fashion.read(fashion.FOLDER, fashion.SPLITS[data])
    elif is_on_disk(data):
        records = open_files(data)
        if records.name in (*RENDERED_SETS, *PHOTO_SETS, *PUBLIC_PHOTOS):
            raise ValueError(
                f"Expected data={data!r} to have a name of its own, found {records.name!r}, which "
                "names a set that this program knows, and whether it is public; rename it."
            )
    else:
        raise ValueError(
            f"Expected data={data!r} to be a path that is there, or in "
            f"{sorted([*RENDERED_SETS, *PHOTO_SETS, *PUBLIC_PHOTOS, *fashion.SPLITS])}; a path may "
            f"have its format before it, one of {', '.join(FORMATS)}, as in coco:PATH."
        )
    return records.without_broken(progress) if skip_broken else records.complete()


def _check_count(count: int | None, full: int) -> None:
    if count is not None and not 1 <= count <= full:
        raise ValueError(f"Expected count={count} in [1, {full}]; leave it out for all records.")


def _maker(name: str) -> tuple[int, Callable[[int], Record]]:
    if name not in _MAKERS:
        raise ValueError(f"Expected set={name!r} in {sorted(RENDERED_SETS)}.")
    return _MAKERS[name]
