"""The embedded sets stay what they were: releases were trained on these very records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from dpwg.data.faces import face
from dpwg.data.grammar import (
    celeba_captions,
    faces_captions,
    tiny_imagenet_captions,
    utkface_captions,
)
from dpwg.data.public import public_caption, public_image, tuning_image
from dpwg.data.records import Record

INDICES = (0, 1, 2, 17, 451, 9_999)


def told(record: Record) -> tuple[object, ...]:
    image = hashlib.sha256(record.image_bytes).hexdigest()
    return image, record.captions, tuple(record.attributes.items())


def grammar() -> Iterator[object]:
    names = ("Male", "Young", "Smiling", "Black_Hair", "Wavy_Hair", "No_Beard", "Eyeglasses")
    for number in range(40):
        traits = {name: (number >> place) % 2 == 0 for place, name in enumerate(names)}
        yield celeba_captions(number, traits)
        yield utkface_captions(number, 1 + 3 * number, ("man", "woman")[number % 2])
        yield tiny_imagenet_captions(number, ("goldfish, Carassius auratus", "abacus")[number % 2])
    yield faces_captions("train/7", face("train", 7).attributes)


DRAWN = {
    "faces": lambda: [told(face(s, i)) for s in ("train", "test") for i in INDICES],
    "public": lambda: [
        told(public_image(s, i)) for s in ("train", "more", "test") for i in (*range(40), 9_999)
    ],
    "tuning": lambda: [told(tuning_image(s, i)) for s in ("train", "test") for i in INDICES],
    "public captions": lambda: [public_caption(i) for i in range(400)],
    "grammar": lambda: list(grammar()),
}
DIGESTS = {
    "faces": "1fd4d0594b0658cf",
    "public": "f7f0803437842199",
    "tuning": "606de87d70bcd0b6",
    "public captions": "d9fc8be7cb5ef94e",
    "grammar": "accd5ad72faaab3a",
}


@pytest.mark.parametrize("name", DRAWN)
def test_records_are_drawn_as_they_always_were(name: str) -> None:
    assert hashlib.sha256(repr(DRAWN[name]()).encode()).hexdigest()[:16] == DIGESTS[name]
