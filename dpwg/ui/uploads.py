"""Pictures from visitors, one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpwg.data import pictures
from dpwg.ui.limits import MAX_UPLOAD_MEGABYTES, MAX_UPLOAD_PIXELS

SUFFIXES = list(pictures.SUFFIXES)


def read_upload(path: str | Path, size: int) -> np.ndarray:
    """The central square of a picture at `size` pixels a side: uint8 RGB (size, size, 3).

    The file is removed, whatever it is. Raises ValueError, in words and without the path, for one
    that is no such picture, is broken, is too large, or was read before.
    """
    most = MAX_UPLOAD_MEGABYTES * 1_000_000
    try:
        with Path(path).open("rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        raise ValueError("This picture was read and removed; choose it again.") from None
    finally:
        Path(path).unlink(missing_ok=True)
    if len(content) > most:
        raise ValueError(f"Expected a file of at most {MAX_UPLOAD_MEGABYTES} MB; shrink it first.")
    picture = pictures.open_picture(content, max_pixels=MAX_UPLOAD_PIXELS, formats=pictures.KINDS)
    return pictures.pixels(picture, size)
