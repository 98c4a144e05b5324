"""One record type and one interface for every data source.

A record is one image with all of its captions, and the privacy unit unless a column joins several.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dpwg.data.pictures import decode

MAX_CAPTION_CHARACTERS = 500
"""What is beyond is cut off; the text encoder reads far less."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One image with its captions.

    `image_bytes` is the encoded file (PNG, JPEG, ...); `attributes` are facts about it that the
    source knows; `name` is what messages call it.
    """

    image_bytes: bytes
    captions: tuple[str, ...]
    attributes: Mapping[str, str] = field(default_factory=dict)
    name: str = "the image"

    def image(self, size: int | None = None) -> np.ndarray:
        """The image as `decode` gives it, uint8 RGB; ValueError names a record that is broken."""
        try:
            return decode(self.image_bytes, size)
        except ValueError as error:
            raise ValueError(f"{self.name} is broken: {error}") from error


class Records(Protocol):
    """An indexable set of records.

    `name` says which set it is, `digest` (hexadecimal) which contents it has.
    """

    name: str
    digest: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@dataclass(eq=False)
class RecordList:
    """Records in memory."""

    name: str
    digest: str
    records: Sequence[Record]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]


def group_numbers(records: Records, column: str) -> list[int]:
    """The group of each record, numbered from 0 as they first appear: equal values, one group.

    ValueError names a record without a value: to guess whose it is could break the guarantee.
    """
    rows = getattr(records, "entries", None)  # whose images need not be read
    rows = [records[index] for index in range(len(records))] if rows is None else rows
    numbers: dict[str, int] = {}
    for row in rows:
        label = row.attributes.get(column, "").strip()
        if not label:
            columns = sorted(set().union(*(row.attributes for row in rows)))
            missing = f"a value of {column!r} for {row.name}, where it is empty or rows disagree"
            if column not in columns:
                missing = f"a column {column!r}, found {', '.join(columns) or 'none'}"
            raise ValueError(f"Expected {missing}.")
        numbers.setdefault(label, len(numbers))
    return [numbers[row.attributes[column].strip()] for row in rows]


def shared_images(records: Records, others: Records) -> int:
    """How many of the others have an image, to the byte, that is among the records'."""

    def digests(of: Records) -> list[bytes]:
        return [hashlib.sha256(of[index].image_bytes).digest() for index in range(len(of))]

    known = set(digests(records))
    return sum(digest in known for digest in digests(others))
