"""One caption and seed under several models, side by side: coarse pictures and upsampled ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import gradio as gr

from dpwg.method.sampling import Sampling
from dpwg.ui.own import YOURS
from dpwg.ui.parts import gallery
from dpwg.ui.pictures import Pictures, watch
from dpwg.ui.pipelines import Load, draw
from dpwg.ui.promises import label

ONE_CANDIDATE = Sampling(candidates=1)
"""A choice among candidates could fall differently in each picture, and hide what is compared."""


class Rows(NamedTuple):
    """What both modes show at one moment, in the order of their components."""

    coarse: Pictures
    images: Pictures
    status: str


def compare_pipelines(
    pipes: Sequence[tuple[str, Load]], caption: str, seed: int, upsampler: str
) -> Iterator[Rows]:
    """One caption and seed under several pipelines, each loaded when it is its turn.

    One that cannot be loaded is left out, and told; ValueError where none can.
    """
    caption = caption.strip()
    asked: dict[str, Any] = {"seed": seed, "settings": ONE_CANDIDATE, "upsampler": upsampler}
    rows, seconds, damaged = Rows([], [], ""), 0.0, dict[str, str]()
    with TemporaryDirectory(prefix="dpwg-") as folder:
        for place, (title, load) in enumerate(pipes, start=1):
            status = f"{title} … ({place} of {len(pipes)})"
            yield rows._replace(status=status)
            try:
                card = load().release.card
            except (ValueError, OSError) as error:
                damaged[title] = str(error)
                continue
            name = [("yours, " if title == YOURS else "") + label(card)]
            before = rows
            steps = draw(load, (caption,), **asked)
            for moment in watch(steps, Path(folder), name, upsampler, f"{place}-"):
                coarse, images = before.coarse + moment.coarse, before.images + moment.images
                rows = Rows(coarse, images, f"{status} {moment.doing}")
                seconds += moment.result.seconds["total"] if moment.result else 0
                yield rows
        if not rows.images:
            raise ValueError(" ".join(damaged.values()))
        facts = [] if caption else ["no caption"]
        facts += [f"seed {seed} for all", f"drawn in {seconds:.2f} s"]
        facts += [f"{', '.join(damaged)} left out, because it is damaged"] if damaged else []
        yield rows._replace(status=" · ".join(facts))


def build_rows(name: str, columns: int) -> list[Any]:
    """A row of coarse pictures, one of upsampled ones, and the status."""
    titles = {"coarse": "Coarse, by the checkpoint", "images": "Upsampled, by the public model"}
    rows = [
        gallery(
            f"{name}-{row}", ["compared", "framed"], label=title, columns=columns, height="auto"
        )
        for row, title in titles.items()
    ]
    status = gr.Markdown("The pictures appear one after the other.", elem_classes="status")
    return [*rows, status]
