"""Pipelines for the pages: loaded once each, and run so that every finished scale can be shown."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, NamedTuple

import numpy as np

from dpwg.checkpoint import checkpoint_names, find_checkpoint
from dpwg.device import pick_device
from dpwg.pipeline import DPWaveletPipeline, GenerationResult
from dpwg.upsample import DEFAULT_UPSAMPLER, chosen_upsampler

KEPT_TRAINED = 2
"""How many models of visitors stay loaded, those that were drawn with last."""
MODEL_QUEUE = "model"
"""One line for all handlers that run a model: two at once would each take twice as long."""


class UpsamplingStep(NamedTuple):
    """How far an upsampler that draws in steps has come."""

    done: int
    steps: int

    def __str__(self) -> str:
        return f"upsampling step {self.done} of {self.steps} …"


Frames = Iterator[np.ndarray | UpsamplingStep | GenerationResult]

_loading = Lock()


def load_pipeline(name: str) -> DPWaveletPipeline:
    """The pipeline of a named checkpoint, loaded by its first use. Paths are refused."""
    if name not in (names := checkpoint_names()):
        raise ValueError(f"Expected checkpoint={name!r} in {names}.")
    with _loading:
        return _load(find_checkpoint(name))


def load_trained(folder: Path) -> DPWaveletPipeline:
    """The pipeline of a visitor's release."""
    with _loading:
        return _load_trained(folder)


def stream(pipe: DPWaveletPipeline, captions: tuple[str, ...], **settings: Any) -> Frames:
    """The partial images of each scale as it is finished, uint8 (B, h, w, 3), then the result.

    In between are an upsampler's steps, where it has any; those that nobody waited for are left
    out. `settings` are the pipeline's own. It runs in a thread, which stops at its next scale or
    step when the iterator is closed. Its errors are raised here.
    """
    finished: SimpleQueue[np.ndarray | UpsamplingStep | GenerationResult | Exception] = (
        SimpleQueue()
    )
    closed = Event()

    def show(item: np.ndarray | UpsamplingStep) -> None:
        if closed.is_set():
            raise InterruptedError("Nobody is looking any more.")
        finished.put(item)

    def on_step(done: int, steps: int) -> None:
        show(UpsamplingStep(done, steps))

    def run() -> None:
        try:
            finished.put(pipe(captions, on_scale=show, on_step=on_step, **settings))
        except Exception as error:
            finished.put(error)

    Thread(target=run, daemon=True).start()
    try:
        while True:
            item = finished.get()
            while isinstance(item, UpsamplingStep) and not finished.empty():
                item = finished.get()
            if isinstance(item, Exception):
                raise item
            yield item
            if isinstance(item, GenerationResult):
                return
    finally:
        closed.set()


def draw(
    load: Callable[[], DPWaveletPipeline], captions: tuple[str, ...], **settings: Any
) -> Frames:
    """`stream` of the pipeline that `load` gives, on a GPU where there is one.

    The upsampler is one of `all_upsamplers`, by its public name; ValueError for any other.
    On ZeroGPU, which lends a GPU to decorated functions only, the package `spaces` is there.
    """
    settings["upsampler"] = chosen_upsampler(settings.get("upsampler", DEFAULT_UPSAMPLER))
    if importlib.util.find_spec("spaces") is None:
        return _draw(load, captions, settings)
    return borrowing()(load, captions, settings)


def borrowing() -> Callable[..., Frames]:
    """What `draw` runs, decorated by `spaces`; ZeroGPU wants to know of it before the launch."""
    import spaces

    decorated: Callable[..., Frames] = spaces.GPU(_draw)
    return decorated


def _draw(
    load: Callable[[], DPWaveletPipeline], captions: tuple[str, ...], settings: dict[str, Any]
) -> Frames:
    pipe = load().to(pick_device())
    yield from stream(pipe, captions, **settings)


@functools.cache
def _load(folder: Path) -> DPWaveletPipeline:
    return DPWaveletPipeline.from_pretrained(folder)


@functools.lru_cache(maxsize=KEPT_TRAINED)
def _load_trained(folder: Path) -> DPWaveletPipeline:
    return DPWaveletPipeline.from_pretrained(folder)
