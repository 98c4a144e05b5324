"""What is wrong with a data set, found before any privacy budget is spent."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from dpwg.data.decode import decode
from dpwg.data.files import FileRecords

PRIVATE = (
    "Computed from the records without noise, so as private as they are: keep it with them. "
    "Nothing was written."
)
WAYS_OUT = {
    "broken": "broken: mend these images, or pass --skip-broken, which leaves them out.",
    "missing": "missing: give each an image and a caption, or pass --skip-broken.",
    "unlisted": "unlisted: name these images in the metadata, or move them away; they are not "
    "trained on.",
    "duplicates": "duplicates: keep one of each, or name a column in which equal ones have the "
    "same value with --unit. The promise is made to each record: of what is there k times, "
    "epsilon is k times as large or more. `finetune` takes them all the same.",
    "ungrouped": "ungrouped: fill in the column of these records.",
}
"""What to do about each kind of fault."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `check_records` found. All of it is private.

    `records` counts all, `usable` those with a caption and an image that decodes. `captions` maps
    a number of captions to how many records have it, `sizes` are the smallest and the largest image
    by pixels, `duplicates` are names of records with the same bytes, `wrong` unless a group holds
    them together. `broken` and `missing` map names to what is the matter; `unlisted` are
    images that no metadata names. `groups` is how many there are, with `group_sizes` like
    `captions`; `ungrouped` names records that have no value of the column. `ways_out` say what to
    do.
    """

    private: str = PRIVATE
    format: str
    source: str
    name: str
    records: int
    usable: int
    captions: dict[int, int]
    sizes: tuple[str, ...]
    columns: tuple[str, ...]
    duplicates: tuple[tuple[str, ...], ...]
    broken: dict[str, str]
    missing: dict[str, str]
    unlisted: tuple[str, ...]
    groups: int | None
    group_sizes: dict[int, int]
    ungrouped: tuple[str, ...]
    wrong: bool
    ways_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dict."""
        return asdict(self)


def check_records(
    records: FileRecords,
    *,
    column: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Read and decode every record, and say what is wrong; with `column`, as groups by it.

    `progress` is called with how many are done, and in all.
    """
    broken: dict[str, str] = {}
    same: dict[bytes, list[int]] = {}
    shapes: list[tuple[int, int]] = []
    for index, entry in enumerate(records.entries):
        progress(index, len(records))
        if entry.problem:
            continue
        try:
            content = entry.read()
            height, width = decode(content).shape[:2]
            shapes.append((width, height))
        except (ValueError, OSError) as error:
            broken[entry.name] = str(error)
            continue
        same.setdefault(hashlib.sha256(content).digest(), []).append(index)
    progress(len(records), len(records))
    entries = records.entries
    labels = [entry.attributes.get(column or "", "").strip() for entry in entries]
    twins = [own for own in same.values() if len(own) > 1]
    apart = [own for own in twins if not column or len({labels[index] for index in own}) > 1]
    group_sizes = Counter(Counter(filter(None, labels)).values())
    ungrouped = [e.name for e, label in zip(entries, labels, strict=True) if column and not label]
    missing = {entry.name: entry.problem for entry in entries if entry.problem}
    faults = {
        "broken": broken,
        "missing": missing,
        "unlisted": records.unlisted,
        "duplicates": apart,
        "ungrouped": ungrouped,
    }
    ends = sorted(shapes, key=lambda shape: shape[0] * shape[1])
    return Report(
        format=records.form,
        source=records.source,
        name=records.name,
        records=len(entries),
        usable=len(shapes),
        captions=_sorted(Counter(len(entry.captions) for entry in entries)),
        sizes=tuple(f"{width}x{height}" for width, height in (*ends[:1], *ends[-1:])),
        columns=tuple(sorted(set().union(*(entry.attributes for entry in entries)))),
        duplicates=tuple(tuple(entries[index].name for index in own) for own in twins),
        broken=broken,
        missing=missing,
        unlisted=tuple(records.unlisted),
        groups=sum(group_sizes.values()) if column else None,
        group_sizes=_sorted(group_sizes),
        ungrouped=tuple(ungrouped),
        wrong=any(map(bool, faults.values())),
        ways_out=tuple(WAYS_OUT[name] for name, found in faults.items() if found),
    )


def _sorted(counts: Counter[int]) -> dict[int, int]:
    return dict(sorted(counts.items()))
