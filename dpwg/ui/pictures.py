"""Pictures on their way to a page: enlarged pixel by pixel, saved once each, scale by scale.

A gallery that is sent again would write its arrays over the files that a browser is still reading;
files with a name of their own are copied once and stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dpwg.method.pipeline import GenerationResult, Stage

SHOWN_PIXELS = 512

Pictures = list[tuple[str, str | None]]


class Moment(NamedTuple):
    """What can be seen of a drawing: the coarse pictures as they are, `size` pixels wide, then the
    upsampled ones with the result; until then, what is `doing` in words.
    """

    size: int
    coarse: Pictures
    images: Pictures
    doing: str
    result: GenerationResult | None = None


def watch(
    steps: Iterable[Stage | GenerationResult],
    folder: Path,
    labels: Sequence[str | None],
    upsampler: str,
    name: str = "",
) -> Iterator[Moment]:
    """A moment for each step; the pictures are files in `folder` whose names begin with `name`."""
    size, coarse = 0, Pictures()
    for step in steps:
        if isinstance(step, GenerationResult):
            yield Moment(size, coarse, saved(folder, f"{name}image", step.image, labels), "", step)
        elif step.images is None:
            yield Moment(size, coarse, [], f"{upsampler}: {step} …")
        else:
            size = step.images.shape[1]
            coarse = saved(folder, f"{name}coarse-{size}", enlarged(step.images), labels)
            more = step.step < step.steps
            work = f"Drawing {square(2 * size)}" if more else f"Upsampling with {upsampler}"
            yield Moment(size, coarse, [], f"{work} …")


def square(size: int) -> str:
    """The size of a square picture in words."""
    return f"{size}×{size}"


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
