"""What is wrong with a data set, found before any privacy budget is spent."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from dpwg.data.files import FileRecords
from dpwg.data.pictures import decode
from dpwg.data.records import MAX_CAPTION_CHARACTERS

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
    "cut_characters": "cut characters: what is behind them is left out; say first what matters.",
    "cut_tokens": "cut tokens: these captions fill the text encoder; their ends are left out.",
}
"""What to do about each kind of fault; those of captions are only told."""


def check_records(
    records: FileRecords,
    *,
    column: str | None = None,
    cut: Callable[[Sequence[str]], int] = lambda captions: 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Read and decode every record, and say what is wrong; with `column`, as groups by it.

    `cut` counts the captions that a text encoder does not read to their end, `progress` is called
    with how many records are done, and in all. All that is found is private: `records` counts all,
    `usable` those with a caption and an image that decodes. `captions` maps a number of captions to
    how many records have it, `sizes` are the smallest and the largest image by pixels.
    `cut_characters` counts captions past MAX_CAPTION_CHARACTERS; a run takes their beginning.
    `duplicates` are names of records with the same bytes, `wrong` unless a group holds them
    together. `broken` and `missing` map names to what is the matter; `unlisted` are images that no
    metadata names. `groups` is how many there are, with `group_sizes` like `captions`; `ungrouped`
    names records that have no value of the column.
    """
    entries, broken = records.entries, dict[str, str]()
    same: dict[bytes, list[int]] = {}
    shapes: list[tuple[int, int]] = []
    for index, entry in enumerate(entries):
        progress(index, len(records))
        if entry.problem:
            continue
        try:
            content = entry.read()
            height, width = decode(content).shape[:2]
        except (ValueError, OSError) as error:
            broken[entry.name] = str(error)
            continue
        shapes.append((width, height))
        same.setdefault(hashlib.sha256(content).digest(), []).append(index)
    progress(len(records), len(records))
    labels = [entry.attributes.get(column or "", "").strip() for entry in entries]
    twins = [own for own in same.values() if len(own) > 1]
    group_sizes = Counter(Counter(filter(None, labels)).values())
    texts = [entry.all_texts for entry in entries]
    captions = [caption for entry in entries for caption in entry.captions]
    ends = sorted(shapes, key=lambda shape: shape[0] * shape[1])
    found: dict[str, Any] = {
        "private": PRIVATE,
        "format": records.form,
        "source": records.source,
        "name": records.name,
        "records": len(entries),
        "usable": len(shapes),
        "captions": dict(sorted(Counter(map(len, texts)).items())),
        "cut_characters": sum(len(text) > MAX_CAPTION_CHARACTERS for own in texts for text in own),
        "cut_tokens": cut(captions),
        "sizes": [f"{width}x{height}" for width, height in (*ends[:1], *ends[-1:])],
        "columns": sorted(set().union(*(entry.attributes for entry in entries))),
        "duplicates": [[entries[index].name for index in own] for own in twins],
        "broken": broken,
        "missing": {entry.name: entry.problem for entry in entries if entry.problem},
        "unlisted": list(records.unlisted),
        "groups": sum(group_sizes.values()) if column else None,
        "group_sizes": dict(sorted(group_sizes.items())),
        "ungrouped": [
            e.name for e, label in zip(entries, labels, strict=True) if column and not label
        ],
    }
    faults = {name: found[name] for name in WAYS_OUT}
    if column:
        faults["duplicates"] = [own for own in twins if len({labels[index] for index in own}) > 1]
    told = [name for name, fault in faults.items() if fault]
    wrong = bool({*told} - {"cut_characters", "cut_tokens"})
    return found | {"wrong": wrong, "ways_out": [WAYS_OUT[name] for name in told]}
