"""Encoded pictures of any common kind as RGB pixels, decoded when their size is known."""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""What strangers may send."""
KINDS = ("PNG", "JPEG", "WEBP")
FORMATS = (*KINDS, "AVIF", "GIF", "BMP", "TIFF", "PPM")
"""What is decoded. Formats that run programs (EPS) or need others' files are left out."""
MAX_PIXELS = 89_478_485
"""Pillow warns of more."""
DRAFT = 4
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def decode(encoded: bytes, size: int | None = None) -> np.ndarray:
    """The `pixels` of a picture in a file's bytes. Raises ValueError as `open_picture` does."""
    return pixels(open_picture(encoded), size)


def open_picture(
    encoded: bytes, *, max_pixels: int = MAX_PIXELS, formats: Collection[str] = FORMATS
) -> Image.Image:
    """A picture whose size and kind, by its content, are known; nothing is decoded yet.

    Raises ValueError, in words and without a path, for another kind of file, too many pixels, or
    more than 16 bits a channel.
    """
    try:
        with warnings.catch_warnings():  # of large pictures: the bound below is stricter
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(_without_long_texts(encoded)), formats=tuple(formats))
    except UnidentifiedImageError:
        raise ValueError(
            f"Expected a picture ({', '.join(formats)}), found another kind of file."
        ) from None
    except Image.DecompressionBombError:
        picture = None
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        raise _damaged(error) from error
    if picture is None or picture.width * picture.height > max_pixels:
        raise ValueError(
            f"Expected at most {max_pixels / 1e6:.0f} million pixels; shrink the picture first."
        )
    if picture.mode in ("I", "F"):
        raise ValueError(f"Expected 8 or 16 bits a channel, found mode {picture.mode}.")
    return picture


def pixels(image: Image.Image, size: int | None = None) -> np.ndarray:
    """An opened picture, uint8 RGB (H, W, 3); with `size`, its largest central square at that side.

    Upright after its EXIF orientation, transparent parts over white, 16 bits a channel cut to 8,
    the first of several frames. The square is resized with Lanczos' filter, antialiased; a JPEG of
    more than `DRAFT` times `size` is decoded at a half, quarter or eighth first. Raises ValueError
    for a damaged file. Copies are not made without need: a picture may have a hundred megabytes.
    """
    try:
        if size is not None:
            image.draft("RGB", (DRAFT * size, DRAFT * size))
        image.load()
        if image.mode.startswith("I;16"):  # Pillow's own conversion cuts off all above 255
            grey = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            grey.info, image = image.info, grey
        ImageOps.exif_transpose(image, in_place=True)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode != "RGB":
            image = image.convert("RGB")
        if size is not None and image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    except Exception as error:  # as above
        raise _damaged(error) from error
    return np.asarray(image)


def _damaged(error: Exception) -> ValueError:
    reason = str(error).rstrip(".") or type(error).__name__
    return ValueError(f"The picture is damaged or cut off ({reason}); save it again.")


def png(image_HWC: np.ndarray, level: int = 6) -> bytes:
    """Pixels as a PNG, packed as tightly as zlib's `level` says."""
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, "PNG", compress_level=level)
    return file.getvalue()


def _without_long_texts(encoded: bytes) -> bytes:
    """A PNG without texts that Pillow takes for bombs, such as a picture generator's settings.

    What is packed in 1,000 bytes has a megabyte at most, which Pillow allows.
    """
    if not encoded.startswith(_SIGNATURE):
        return encoded
    parts, place = [_SIGNATURE], len(_SIGNATURE)
    while place < len(encoded):
        length, kind = int.from_bytes(encoded[place : place + 4]), encoded[place + 4 : place + 8]
        chunk = encoded[place : place + length + 12]
        packed = kind == b"zTXt" or (kind == b"iTXt" and b"\0\1\0" in chunk[8:100])
        if kind not in (b"tEXt", b"zTXt", b"iTXt") or length <= (1_000 if packed else 100_000):
            parts.append(chunk)
        place += length + 12
    return b"".join(parts)
