"""One record type and one interface for every data source.

A record is the privacy unit: one image with all of its captions.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps


@dataclass(frozen=True, kw_only=True)
class Record:
    """One image with its captions.

    `image_bytes` is the encoded file (PNG, JPEG, ...); `attributes` are the facts that the captions
    were made from, where the source knows them.
    """

    image_bytes: bytes
    captions: tuple[str, ...]
    attributes: Mapping[str, str] = field(default_factory=dict)

    def image(self, size: int | None = None) -> np.ndarray:
        """The decoded image, uint8 RGB (H, W, 3); with `size`, its central square at that side."""
        image = Image.open(io.BytesIO(self.image_bytes)).convert("RGB")
        if size is not None and image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
        return np.asarray(image)


class RecordList:
    """Records in memory."""

    def __init__(self, name: str, digest: str, records: Sequence[Record]) -> None:
        self.name, self.digest, self._records = name, digest, records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]


class Records(Protocol):
    """An indexable set of records; its length is the N of the privacy accounting.

    `name` says which set it is, `digest` (hexadecimal) which contents it has.
    """

    name: str
    digest: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...
