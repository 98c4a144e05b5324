"""Pictures from visitors, one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpwg.data.pictures import SUFFIXES as KINDS
from dpwg.data.pictures import central_square, open_picture
from dpwg.ui.limits import MAX_UPLOAD_MEGABYTES, MAX_UPLOAD_PIXELS

SUFFIXES = list(KINDS)


def read_upload(path: str | Path, size: int) -> np.ndarray:
    """The central square of a picture at `size` pixels a side: uint8 RGB (size, size, 3).

    Raises ValueError, in words and without the path, for a file that is no such picture, is
    broken, or is too large.
    """
    if Path(path).stat().st_size > MAX_UPLOAD_MEGABYTES * 1_000_000:
        raise ValueError(f"Expected a file of at most {MAX_UPLOAD_MEGABYTES} MB; shrink it first.")
    return central_square(open_picture(path, MAX_UPLOAD_PIXELS), size)
