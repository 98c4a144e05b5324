"""Pictures on their way to a page: enlarged pixel by pixel, saved once each.

A gallery that is sent again would write its arrays over the files that a browser is still reading;
files with a name of their own are copied once and stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SHOWN_PIXELS = 512

Pictures = list[tuple[str, str | None]]


def enlarged(images_BHWC: np.ndarray) -> np.ndarray:
    """Every pixel as a square, so that no browser smooths it."""
    times = max(SHOWN_PIXELS // images_BHWC.shape[1], 1)
    return images_BHWC.repeat(times, axis=1).repeat(times, axis=2)


def saved(
    folder: Path, name: str, images_BHWC: np.ndarray, labels: Sequence[str | None]
) -> Pictures:
    """The images as PNG files in `folder`, each with its label, as a gallery takes them."""
    pictures: Pictures = []
    for place, (image, label) in enumerate(zip(images_BHWC, labels, strict=True)):
        path = folder / f"{name}-{place}.png"
        Image.fromarray(image).save(path)
        pictures.append((str(path), label))
    return pictures
