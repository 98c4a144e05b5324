"""Every data set by name, and the way from a name or a path to records.

A further set is a module beside this one with a `DataSet`, which `SETS` lists.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from dpwg.data.cache import RenderedRecords, render_set, set_folder
from dpwg.data.dataset import DataSet
from dpwg.data.faces import FACES
from dpwg.data.fashion import FASHION
from dpwg.data.formats import FORMATS, is_on_disk, open_files
from dpwg.data.photos import CELEBA, TINY_IMAGENET, UTKFACE
from dpwg.data.public import PUBLIC, TUNING
from dpwg.data.public_photos import PUBLIC_PHOTOS
from dpwg.data.records import Records

SETS = {
    own.name: own
    for own in (
        *(FACES, PUBLIC, TUNING, FASHION),
        *(CELEBA, UTKFACE, TINY_IMAGENET, PUBLIC_PHOTOS),
    )
}
SPLITS: dict[str, tuple[DataSet, str]] = {
    f"{own.name}-{split}".rstrip("-"): (own, split) for own in SETS.values() for split in own.splits
}
"""The set and the split that a name of records stands for."""
RENDERED_SETS = {
    name: own.splits[split] or 0 for name, (own, split) in SPLITS.items() if own.make is not None
}
"""The rendered sets and how many records each has."""


def is_public(name: str) -> bool:
    """Whether a name is that of public records."""
    return name in SPLITS and SPLITS[name][0].public


def render(name: str, *, count: int | None = None, root: Path | None = None) -> Iterator[int]:
    """Render one of `RENDERED_SETS`, or its first `count` records; yields how many are done."""
    count, (own, split) = _checked(count, RENDERED_SETS[name]), SPLITS[name]
    assert own.make is not None
    return render_set(name, count, functools.partial(own.make, split), root=root)


def open_records(
    data: str,
    *,
    count: int | None = None,
    skip_broken: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Records:
    """The records of one of `SPLITS`, or those at PATH or FORMAT:PATH.

    Known sets can be cut to the first `count`; rendered ones are checked by digest. A data set on
    disk with records that lack an image or a caption is refused, naming the first; with
    `skip_broken` these are left out, and those whose image does not decode: all of them are decoded
    for it, `progress` is called with how many are done and in all.
    """
    if data in RENDERED_SETS:
        folder = set_folder(data, _checked(count, RENDERED_SETS[data]))
        if not folder.exists():
            part = "" if count is None else f" --count {count}"
            raise FileNotFoundError(
                f"{folder} is not there; run `python -m dpwg data {data}{part}` first."
            )
        return RenderedRecords(folder)
    if data in SPLITS:
        own, split = SPLITS[data]
        assert own.open is not None
        records = own.open(split, count)
    elif not is_on_disk(data):
        raise ValueError(
            f"Expected data={data!r} to be a path that is there, or in {sorted(SPLITS)}; a path "
            f"may have its format before it, one of {', '.join(FORMATS)}, as in coco:PATH."
        )
    elif count is not None:
        raise ValueError(f"Expected no count={count} of a data set on disk: all of it is taken.")
    else:
        records = open_files(data)
        if records.name in SPLITS and records.form != "fashion":
            raise ValueError(
                f"Expected data={data!r} to have a name of its own, found {records.name!r}, which "
                "names a set that this program knows, and whether it is public; rename it."
            )
    return records.without_broken(progress) if skip_broken else records.complete()


def _checked(count: int | None, full: int) -> int:
    if count is not None and not 1 <= count <= full:
        raise ValueError(f"Expected count={count} in [1, {full}]; leave it out for all records.")
    return count or full
