"""Encoded pictures of any common kind as RGB pixels."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
"""What is decoded. Formats that run programs (EPS) or need others' files are left out."""
DRAFT = 4


def decode(encoded: bytes, size: int | None = None) -> np.ndarray:
    """The `pixels` of a picture in a file's bytes.

    Raises ValueError for what is no such picture, is cut off or damaged, has more pixels than
    Pillow takes without a warning (89 million; none of them is decoded), or more than 16 bits a
    channel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        return pixels(image, size)
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        reason = str(error).rstrip(".") or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"no picture of the kinds {', '.join(FORMATS)}"
        raise ValueError(f"{reason}.") from error


def pixels(image: Image.Image, size: int | None = None) -> np.ndarray:
    """An opened picture, uint8 RGB (H, W, 3); with `size`, its largest central square at that side.

    Upright after its EXIF orientation, transparent parts over white, 16 bits a channel cut to 8,
    the first of several frames. The square is resized with Lanczos' filter, antialiased; a JPEG of
    more than `DRAFT` times `size` is decoded at a half, quarter or eighth first. Raises ValueError
    for more than 16 bits a channel, and whatever Pillow does for a damaged file.
    """
    if size is not None:
        image.draft("RGB", (DRAFT * size, DRAFT * size))
    image.load()
    if image.mode in ("I", "F"):
        raise ValueError(f"expected 8 or 16 bits a channel, found mode {image.mode}")
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts off all above 255
        grey = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        grey.info, image = image.info, grey
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)
