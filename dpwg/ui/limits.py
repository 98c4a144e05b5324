"""How much a visitor may ask for: every bound of the pages, in one place."""

from __future__ import annotations

from numbers import Real
from typing import Any

from dpwg.data.records import MAX_CAPTION_CHARACTERS
from dpwg.data.upload import UploadLimits
from dpwg.method.pipeline import MAX_SEED
from dpwg.privacy.accountants import MAX_EPSILON, MAX_NOISE
from dpwg.privacy.accounting import MIN_DELTA

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
KEPT_SECONDS = 3600
"""How long what a visitor uploaded, made or trained stays on the disk."""

MIN_TRAIN_RECORDS, MAX_TRAIN_RECORDS = 10, 4_000
MAX_TRAIN_BATCH = 1_024
MAX_TRAIN_STEPS = 100
MIN_TRAIN_EPSILON, MAX_TRAIN_EPSILON = 0.1, 20.0
MAX_TRAIN_MINUTES = 15
MAX_RUNS = 8
MAX_RUN_MEGABYTES = 400
"""All that a run can leave on the disk: pictures, encodings, state, release and its zip."""
TRAIN_UPLOAD_MEGABYTES = 50
TRAIN_UPLOAD = UploadLimits(
    records=MAX_TRAIN_RECORDS,
    entries=10_000,
    file_bytes=MAX_UPLOAD_MEGABYTES * 1_000_000,
    total_bytes=200_000_000,
    side=10_000,
    pixels=MAX_UPLOAD_PIXELS,
    total_pixels=1_000_000_000,
)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """A number field's value as an integer in [low, high]; raises ValueError in words."""
    within(name, value, low, high, step=1)
    return int(value)


def within(name: str, value: Any, low: float, high: float, *, step: float = 0) -> float:
    """A number field's value in [low, high], and of that step; raises ValueError in words."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not low <= value <= high or (step and value % step):
        kind = "an integer" if step else "a number"
        raise ValueError(f"Expected {name}={value!s:.40} to be {kind} from {low:,} to {high:,}.")
    return float(value)


def described_training() -> str:
    """The bounds of the Train tab in one paragraph of Markdown."""
    upload = TRAIN_UPLOAD
    return (
        f"{MIN_TRAIN_RECORDS} to {MAX_TRAIN_RECORDS:,} records; a zip of at most "
        f"{TRAIN_UPLOAD_MEGABYTES} MB, {upload.total_bytes / 1e6:.0f} MB and {upload.entries:,} "
        f"entries unpacked; a picture of at most {upload.file_bytes / 1e6:.0f} MB, "
        f"{upload.pixels / 1e6:.0f} million pixels and {upload.side:,} a side, "
        f"{upload.total_pixels / 1e6:,.0f} million in all; {MAX_TRAIN_STEPS} steps of at most "
        f"{MAX_TRAIN_BATCH:,} records; {MAX_TRAIN_MINUTES} minutes a run, one at a time; "
        f"{MAX_RUNS} runs of all visitors, removed {KEPT_SECONDS // 60} minutes after the plan."
    )


def described() -> str:
    """The bounds in Markdown, for the About page."""
    return f"""- A caption has at most {MAX_CAPTION_CHARACTERS:,} characters; the text encoder may
  cut it earlier.
- At most {MAX_IMAGES} images at once, {MAX_CAPTIONS} captions side by side; seeds to {MAX_SEED:,}.
- An upload is a PNG, JPEG or WebP image of at most {MAX_UPLOAD_MEGABYTES} MB and
  {MAX_UPLOAD_PIXELS / 1e6:.0f} million pixels, with at most {MAX_LEVELS} levels of bands.
- The accountant takes up to {MAX_RECORDS:,} records and {MAX_STEPS:,} steps, delta from
  {MIN_DELTA:g}, noise up to {MAX_NOISE:,.0f} and epsilon up to {MAX_EPSILON:g}.
- A live attack takes {MIN_ATTACKED} to {MAX_ATTACKED} records of each kind, a search for nearest
  records at most {MAX_SEARCHED:,}.
- Training: {described_training()}
- At most {QUEUE_SIZE} requests wait in line."""
