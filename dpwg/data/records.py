"""One record type and one interface for every data source.

A record is one image with all of its captions, and the privacy unit unless `groups` joins several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dpwg.data.decode import decode

MAX_CAPTION_CHARACTERS = 500


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


class RecordList:
    """Records in memory."""

    def __init__(self, name: str, digest: str, records: Sequence[Record]) -> None:
        self.name, self.digest, self._records = name, digest, records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]


class Records(Protocol):
    """An indexable set of records.

    `name` says which set it is, `digest` (hexadecimal) which contents it has.
    """

    name: str
    digest: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...
