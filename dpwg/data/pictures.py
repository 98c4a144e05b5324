"""Pictures from strangers: checked before they are decoded, then made as the models see them."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from dpwg.data.decode import pixels

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""The endings of the files that are read, and what their content then is."""
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))


def open_picture(file: str | Path | BinaryIO, max_pixels: int) -> Image.Image:
    """A picture whose size and kind, by its content, are known; nothing is decoded yet.

    Raises ValueError, in words and without a path, for another kind of file or too many pixels.
    """
    try:
        with warnings.catch_warnings():  # of large pictures: the bound below is stricter
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture: Image.Image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(
            f"Expected a picture ({', '.join(FORMATS)}), found another kind of file."
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(
            f"Expected at most {max_pixels / 1e6:.0f} million pixels; shrink it first."
        ) from None
    except _DAMAGE:
        raise ValueError(_DAMAGED) from None
    width, height = picture.size
    if width * height > max_pixels:
        raise ValueError(
            f"Expected at most {max_pixels / 1e6:.0f} million pixels, found "
            f"{width:,}×{height:,}; shrink it first."
        )
    return picture


def central_square(picture: Image.Image, size: int) -> np.ndarray:
    """The `pixels` of an opened picture: uint8 RGB (size, size, 3).

    Raises ValueError, in words, for a damaged one.
    """
    try:
        picture.thumbnail((8 * size, 8 * size), Image.Resampling.BOX)  # in place: copies are small
        return pixels(picture, size)
    except _DAMAGE:
        raise ValueError(_DAMAGED) from None


_DAMAGED = "The picture is damaged or cut off; save it again."
_DAMAGE = (OSError, SyntaxError, EOFError, ValueError, struct.error, zlib.error)  # Pillow's
