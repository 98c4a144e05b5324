"""Pipelines for the pages: loaded once each, and run where there is a GPU to borrow."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

from dpwg.device import pick_device
from dpwg.method.pipeline import DPWaveletPipeline, GenerationResult, Stage
from dpwg.release.folder import checkpoint_names, find_checkpoint
from dpwg.upsampling.upsamplers import chosen_upsampler

KEPT_TRAINED = 2
"""How many models of visitors stay loaded, those that were drawn with last."""
MODEL_QUEUE = "model"
"""One line for all handlers that run a model: two at once would each take twice as long."""

Load = Callable[[], DPWaveletPipeline]
Steps = Iterator[Stage | GenerationResult]

_loading = Lock()


def load_pipeline(name: str) -> DPWaveletPipeline:
    """The pipeline of a named checkpoint, loaded by its first use. Paths are refused."""
    if name not in (names := checkpoint_names()):
        raise ValueError(f"Expected checkpoint={name!r:.80} in {names}.")
    with _loading:
        return _load(find_checkpoint(name))


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


@functools.cache
def _load(folder: Path) -> DPWaveletPipeline:
    return DPWaveletPipeline.from_pretrained(folder)


@functools.lru_cache(maxsize=KEPT_TRAINED)
def _load_trained(folder: Path) -> DPWaveletPipeline:
    return DPWaveletPipeline.from_pretrained(folder)
