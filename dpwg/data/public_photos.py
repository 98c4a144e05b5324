"""The public photographs that every public part of the photograph family is trained on.

Portraits, put together of UTKFace's faces at the scale and place that CelebA's alignment gives
them, before Tiny-ImageNet; and Tiny-ImageNet's own images. No image of CelebA is among them.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from dpwg.data.dataset import DataSet
from dpwg.data.files import Entry, FileRecords
from dpwg.data.photos import open_photos
from dpwg.data.pictures import png

CLEANED = "cleaned"
"""The form of a set whose faces are those from which near-copies of CelebA's were left out."""
_CLEANED_SHA256 = (
    "0643fa374911c63107ba95db018ba26e1b94d33e1635cb9ebffb21e27de4ed61",
    "e4d75ad841fe3296131f365a68004097c5e2dc8c23c1261facea782d0515d86f",
)
"""Of the stamps of those faces, for training and for the test."""
PORTRAITS = 2
"""How many portraits are made of each face, before other backgrounds."""


def open_public_photos(split: str, count: int | None = None) -> FileRecords:
    """The public photographs, or the first so many: a portrait, then another photograph.

    `split` is "" or "test". Where one kind is used up the rest are of the other. Raises as
    `open_photos` does.
    """
    faces = open_photos("utkface", split or "train")
    others = open_photos("tiny-imagenet", "val" if split else "train")
    portraits = (
        _portrait_entry(face, number, others.entries)
        for number in range(PORTRAITS)
        for face in faces.entries
    )
    both = itertools.zip_longest(portraits, others.entries)
    entries = [entry for pair in both for entry in pair if entry is not None]
    stamps = hashlib.sha256(repr([face.stamp for face in faces.entries]).encode()).hexdigest()
    records = FileRecords(
        "public-photos-test" if split else "public-photos",
        entries,
        CLEANED if stamps in _CLEANED_SHA256 else "photos",
        f"{faces.source} and {others.source}",
        digest="of both",
    ).first(count)
    parts = (faces.digest, others.digest, len(records))
    records.digest = hashlib.sha256(f"public photos, {PORTRAITS}: {parts}".encode()).hexdigest()
    return records


def public_portrait(
    face_HW3: np.ndarray, background_HW3: np.ndarray, rng: random.Random
) -> np.ndarray:
    """A tight face crop at the scale and place of CelebA's faces, before another photograph.

    Both are uint8, squares at best; the result is uint8 (128, 128, 3), mirrored and its background
    blurred half of the time each, as `rng` says.
    """
    side = round(128 * rng.uniform(0.55, 0.68))
    # The eyes are at 37 % of the crop's height and come to row 66, so that it ends before row 125.
    top = round(66 - 0.37 * side + rng.uniform(-3, 3))
    left = round(64 - side / 2 + rng.uniform(-4, 4))
    blurred, mirrored = rng.random() < 0.5, rng.random() < 0.5
    background = Image.fromarray(background_HW3).resize((128, 128), Image.Resampling.LANCZOS)
    if blurred:
        background = background.filter(ImageFilter.GaussianBlur(6))
    face = Image.fromarray(face_HW3).resize((side, side), Image.Resampling.LANCZOS)
    inward = np.minimum(np.arange(side), np.arange(side)[::-1])
    edge = np.clip((inward + 1) / 6, 0, 1)  # five pixels of less than all
    mask = Image.fromarray((255 * np.minimum.outer(edge, edge)).astype(np.uint8))
    background.paste(face, (left, top), mask)
    pixels = np.asarray(background)
    return np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels


def _portrait_entry(face: Entry, number: int, backgrounds: Sequence[Entry]) -> Entry:
    """A portrait of a face, which has its captions."""
    name = f"{face.name}:{number}"
    read = functools.partial(_portrait, face, backgrounds, f"dpwg/portrait/{name}")
    return replace(face, name=name, read=read)


def _portrait(face: Entry, backgrounds: Sequence[Entry], seed: str) -> bytes:
    """PNG bytes. The background is one photograph, or four of a quarter's size: those are sharp."""
    rng = random.Random(seed)
    tiles = [_pixels(rng.choice(backgrounds)) for _ in range(rng.choice((1, 4)))]
    background = tiles[0]
    if len(tiles) == 4:
        background = np.concatenate([np.concatenate(tiles[at : at + 2], 1) for at in (0, 2)])
    return png(public_portrait(_pixels(face), background, rng), level=1)


def _pixels(entry: Entry) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(entry.read())).convert("RGB"))


PUBLIC_PHOTOS = DataSet(
    name="public-photos",
    splits={"": None, "test": None},
    open=open_public_photos,
    public=True,
    terms="research and education, not commercial, as its photographs",
)
