"""The public photographs that every public part of the photograph family is trained on.

Portraits, put together of UTKFace's faces at the scale and place that CelebA's alignment gives
them, before Tiny-ImageNet; and Tiny-ImageNet's own images. No image of CelebA is among them.
"""

from __future__ import annotations

import functools
import hashlib
import io
import random

import numpy as np
from PIL import Image

from dpwg.data.files import Entry, FileRecords
from dpwg.data.photos import open_photos, public_portrait

PUBLIC_PHOTOS = {
    "public-photos": ("utkface-train", "tiny-imagenet-train"),
    "public-photos-test": ("utkface-test", "tiny-imagenet-val"),
}
"""The sets, and of which faces and other photographs each is made."""
CLEANED = "cleaned"
"""The form of a set whose faces are those from which near-copies of CelebA's were left out."""
_CLEANED_SHA256 = (
    "0643fa374911c63107ba95db018ba26e1b94d33e1635cb9ebffb21e27de4ed61",
    "e4d75ad841fe3296131f365a68004097c5e2dc8c23c1261facea782d0515d86f",
)
"""Of the stamps of those faces, for training and for the test."""
PORTRAITS = 2
"""How many portraits are made of each face, before other backgrounds."""


class _Portrait(Entry):
    """A portrait of a face's entry, which has its captions."""

    __slots__ = ("_face",)
    _face: Entry

    def __init__(self, face: Entry, number: int, backgrounds: list[Entry]) -> None:
        name = f"{face.name}:{number}"
        values = {
            "name": name,
            "read": functools.partial(_portrait, face, backgrounds, f"dpwg/portrait/{name}"),
            "stamp": face.stamp,
            "attributes": face.attributes,
            "problem": "",
            "_face": face,
        }
        for own, value in values.items():
            object.__setattr__(self, own, value)

    @property
    def captions(self) -> tuple[str, ...]:
        return self._face.captions


def open_public_photos(name: str, count: int | None = None) -> FileRecords:
    """One of `PUBLIC_PHOTOS`, or its first `count` records: a portrait, then another photograph.

    Where one kind is used up the rest are of the other. Raises as `open_photos` does.
    """
    faces, others = (open_photos(own) for own in PUBLIC_PHOTOS[name])
    portraits = [
        _Portrait(face, number, others.entries)
        for number in range(PORTRAITS)
        for face in faces.entries
    ]
    both = min(len(portraits), len(others))
    entries = [entry for pair in zip(portraits, others.entries, strict=False) for entry in pair]
    entries += [*portraits[both:], *others.entries[both:]]
    if count is not None and not 1 <= count <= len(entries):
        raise ValueError(f"Expected count={count} from 1 to the {len(entries)} records of {name}.")
    stamps = hashlib.sha256(repr([face.stamp for face in faces.entries]).encode()).hexdigest()
    form = CLEANED if stamps in _CLEANED_SHA256 else "photos"
    source = f"{faces.source} and {others.source}"
    records = FileRecords(name, entries[:1], form=form, source=source)
    records.entries = entries[:count]
    records.digest = _digest(faces.digest, others.digest, len(records))
    return records


def _digest(*parts: object) -> str:
    return hashlib.sha256(f"public photos, {PORTRAITS}: {parts}".encode()).hexdigest()


def _portrait(face: Entry, backgrounds: list[Entry], seed: str) -> bytes:
    """PNG bytes. The background is one photograph, or four of a quarter's size: those are sharp."""
    rng = random.Random(seed)
    tiles = [_pixels(rng.choice(backgrounds)) for _ in range(rng.choice((1, 4)))]
    background = tiles[0]
    if len(tiles) == 4:
        background = np.concatenate([np.concatenate(tiles[at : at + 2], 1) for at in (0, 2)])
    pixels = public_portrait(_pixels(face), background, rng)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _pixels(entry: Entry) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(entry.read())).convert("RGB"))
