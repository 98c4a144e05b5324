"""Pipelines for the pages: loaded once each, run where there is a GPU to borrow, and watched.

A gallery that is sent again would write its arrays over the files that a browser is still reading;
files with a name of their own are copied once and stay as they are.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dpwg.device import pick_device
from dpwg.method.pipeline import DPWaveletPipeline, GenerationResult, Stage
from dpwg.release.folder import checkpoint_names, find_checkpoint
from dpwg.upsampling.upsamplers import chosen_upsampler

KEPT_TRAINED = 2
"""How many models of visitors stay loaded, those that were drawn with last."""
SHOWN_PIXELS = 512

Load = Callable[[], DPWaveletPipeline]
Steps = Iterator[Stage | GenerationResult]
Pictures = list[tuple[str, str | None]]

_loading = Lock()
_load = functools.cache(DPWaveletPipeline.from_pretrained)
_load_trained = functools.lru_cache(KEPT_TRAINED)(DPWaveletPipeline.from_pretrained)


def named(name: str) -> Path:
    """The folder of a named checkpoint; ValueError, in words, for a path or an unknown name."""
    if name not in (names := checkpoint_names()):
        raise ValueError(f"Expected checkpoint={name!r:.80} in {names}.")
    return find_checkpoint(name)


def load_pipeline(name: str) -> DPWaveletPipeline:
    """The pipeline of a named checkpoint, loaded by its first use."""
    folder = named(name)
    with _loading:
        return _load(folder)


def load_trained(folder: Path) -> DPWaveletPipeline:
    """The pipeline of a visitor's release."""
    with _loading:
        return _load_trained(folder)


def draw(load: Load, captions: tuple[str, ...], *, upsampler: str, **settings: Any) -> Steps:
    """The stages of the pipeline that `load` gives, on a GPU where there is one.

    The upsampler is one of `all_upsamplers`, by its public name; ValueError for any other.
    On ZeroGPU, which lends a GPU to decorated functions only, the package `spaces` is there.
    """
    settings["upsampler"] = chosen_upsampler(upsampler)
    lent = importlib.util.find_spec("spaces") is not None
    return (borrowing() if lent else _draw)(load, captions, settings)


def borrowing() -> Callable[..., Steps]:
    """What `draw` runs, decorated by `spaces`; ZeroGPU wants to know of it before the launch."""
    import spaces

    decorated: Callable[..., Steps] = spaces.GPU(_draw)
    return decorated


def _draw(load: Load, captions: tuple[str, ...], settings: dict[str, Any]) -> Steps:
    yield from load().to(pick_device()).stages(captions, **settings)


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
