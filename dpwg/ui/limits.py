"""How much a visitor may ask for: every bound of the pages, in one place."""

from __future__ import annotations

import math
from typing import Any

from dpwg.pipeline import MAX_SEED
from dpwg.privacy.accounting import MAX_EPSILON, MAX_NOISE, MIN_DELTA
from dpwg.text import MAX_CAPTION_CHARACTERS

MAX_IMAGES = 4
MAX_CAPTIONS = 6
MAX_UPLOAD_MEGABYTES = 10
MAX_UPLOAD_PIXELS = 50_000_000
MAX_LEVELS = 5
MAX_RECORDS = 1_000_000_000
MAX_STEPS = 20_000
"""More take the accountants minutes where the rate is near 1."""
MIN_ATTACKED, MAX_ATTACKED = 50, 500
"""Records of each kind in a live attack; rendering and encoding them takes most of its time."""
MAX_SEARCHED = 1000
QUEUE_SIZE = 32


def whole(name: str, value: Any, low: int, high: int) -> int:
    """A number field's value as an integer in [low, high]; raises ValueError in words."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not (real and math.isfinite(value) and value == int(value) and low <= value <= high):
        raise ValueError(f"Expected {name}={value} to be an integer in [{low:,}, {high:,}].")
    return int(value)


def described() -> str:
    """The bounds in Markdown, for the About page."""
    lines = (
        f"A caption has at most {MAX_CAPTION_CHARACTERS:,} characters; the text encoder may cut it "
        "earlier.",
        f"At most {MAX_IMAGES} images at once, and {MAX_CAPTIONS} captions side by side. "
        f"Seeds are 0 to {MAX_SEED:,}.",
        f"An upload is a PNG, JPEG or WebP image of at most {MAX_UPLOAD_MEGABYTES} MB and "
        f"{MAX_UPLOAD_PIXELS / 1e6:.0f} million pixels; it has at most {MAX_LEVELS} levels of "
        "bands here.",
        f"The accountant takes up to {MAX_RECORDS:,} records and {MAX_STEPS:,} steps, delta from "
        f"{MIN_DELTA:g}, noise up to {MAX_NOISE:,.0f} and epsilon up to {MAX_EPSILON:g}.",
        f"A live attack takes {MIN_ATTACKED} to {MAX_ATTACKED} records of each kind, a search for "
        f"nearest records at most {MAX_SEARCHED:,} of each kind.",
        f"At most {QUEUE_SIZE} requests wait in line.",
    )
    return "\n".join(f"- {line}" for line in lines)
