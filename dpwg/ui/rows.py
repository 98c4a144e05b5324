"""One caption and seed under several models, side by side: coarse pictures and upsampled ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import gradio as gr

from dpwg.method.pipeline import DPWaveletPipeline, GenerationResult
from dpwg.method.sampling import Sampling
from dpwg.ui.own import YOURS
from dpwg.ui.pictures import Pictures, enlarged, saved
from dpwg.ui.pipelines import draw
from dpwg.ui.promises import label

ONE_CANDIDATE = Sampling(candidates=1)
"""A choice among candidates could fall differently in each picture, and hide what is compared."""


class Rows(NamedTuple):
    """What both modes show at one moment, in the order of their components."""

    coarse: Pictures
    images: Pictures
    status: str


def compare_pipelines(
    pipes: Sequence[tuple[str, Callable[[], DPWaveletPipeline]]],
    caption: str,
    seed: int,
    upsampler: str,
) -> Iterator[Rows]:
    """One caption and seed under several pipelines, each loaded when it is its turn."""
    caption = caption.strip()
    coarse: Pictures = []
    images: Pictures = []
    seconds = 0.0
    with TemporaryDirectory(prefix="dpwg-") as name:
        folder = Path(name)
        for place, (title, load) in enumerate(pipes):
            status = f"{title} … ({place + 1} of {len(pipes)})"
            yield Rows(coarse, images, status)
            pipe = load()
            labels: list[str | None] = [
                ("yours, " if title == YOURS else "") + label(pipe.release.card)
            ]
            asked = {"seed": seed, "settings": ONE_CANDIDATE, "upsampler": upsampler}
            for step in draw(load, (caption,), **asked):
                if isinstance(step, GenerationResult):
                    images = [*images, *saved(folder, f"image-{place}", step.image, labels)]
                    seconds += step.seconds["total"]
                elif step.images is None:
                    yield Rows(coarse, images, f"{status} · {step} …")
                    continue
                else:
                    part = saved(
                        folder,
                        f"coarse-{place}-{step.images.shape[1]}",
                        enlarged(step.images),
                        labels,
                    )
                    coarse = [*coarse[:place], *part]
                yield Rows(coarse, images, status)
        told = "" if caption else "no caption · "
        yield Rows(coarse, images, f"{told}seed {seed} for all · drawn in {seconds:.2f} s")


def build_rows(name: str, columns: int) -> list[Any]:
    """A row of coarse pictures, one of upsampled ones, and the status."""
    shown: list[Any] = []
    for row, title in (
        ("coarse", "Coarse, by the checkpoint"),
        ("images", "Upsampled, by the public model"),
    ):
        shown.append(
            gr.Gallery(
                label=title,
                columns=columns,
                height="auto",
                format="png",
                interactive=False,
                buttons=["fullscreen", "download"],
                elem_id=f"{name}-{row}",
                elem_classes=["compared", "framed"],
            )
        )
    return [*shown, gr.Markdown("They appear one after the other.", elem_classes="status")]
