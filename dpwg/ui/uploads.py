"""Pictures from visitors: checked before they are decoded, then made as the model sees pictures."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dpwg.ui.limits import MAX_UPLOAD_MEGABYTES, MAX_UPLOAD_PIXELS

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = [".png", ".jpg", ".jpeg", ".webp"]


def read_upload(path: str | Path, size: int) -> np.ndarray:
    """The central square of a picture at `size` pixels a side: uint8 RGB (size, size, 3).

    Transparent parts become white. Raises ValueError, in words and without the path, for a file
    that is no such picture, is broken, or is too large.
    """
    if Path(path).stat().st_size > MAX_UPLOAD_MEGABYTES * 1_000_000:
        raise ValueError(f"Expected a file of at most {MAX_UPLOAD_MEGABYTES} MB; shrink it first.")
    try:
        with warnings.catch_warnings():  # of large pictures: the bound below is stricter
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture: Image.Image = Image.open(path, formats=FORMATS)
        width, height = picture.size
        if width * height > MAX_UPLOAD_PIXELS:
            raise ValueError(
                f"Expected at most {MAX_UPLOAD_PIXELS / 1e6:.0f} million pixels, found "
                f"{width:,}×{height:,}; shrink it first."
            )
        picture.draft("RGB", (2 * size, 2 * size))  # JPEG alone: decodes near the size wanted
        if picture.mode.startswith("I;16"):  # Pillow's own conversion cuts off all above 255
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        picture.thumbnail((8 * size, 8 * size), Image.Resampling.BOX)
        upright = ImageOps.exif_transpose(picture).convert("RGBA")
    except UnidentifiedImageError:
        raise ValueError(
            f"Expected a picture ({', '.join(FORMATS)}), found another kind of file."
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(
            f"Expected at most {MAX_UPLOAD_PIXELS / 1e6:.0f} million pixels; shrink it first."
        ) from None
    except (OSError, SyntaxError, EOFError):  # Pillow's for truncated and damaged files
        raise ValueError("The picture is damaged or cut off; save it again.") from None
    paper = Image.new("RGBA", upright.size, "white")
    flat = Image.alpha_composite(paper, upright).convert("RGB")
    return np.asarray(ImageOps.fit(flat, (size, size), Image.Resampling.LANCZOS))
