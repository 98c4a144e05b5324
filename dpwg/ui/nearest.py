"""Part of the Attack tab: the training records that are nearest to a generated picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
import torch
from torch import Tensor

from dpwg.data.faces import TRAIN_RECORDS
from dpwg.measure.membership import nearest_records
from dpwg.method.pipeline import to_uint8
from dpwg.ui.families import FACES, family_of, known
from dpwg.ui.fresh import DATA, PROGRESS, claim, coarse_faces, refusal
from dpwg.ui.limits import MAX_SEARCHED, MIN_ATTACKED, whole
from dpwg.ui.own import YOURS, family_with, loader, own_card
from dpwg.ui.parts import ON_MODEL, gallery, in_words, picture
from dpwg.ui.pictures import Pictures, enlarged, saved
from dpwg.ui.runs import Run
from dpwg.ui.shown import Shown, shown_or_example

NEIGHBOURS = 3
LEVELS = 255
INTRODUCTION = """### Does it draw its training records again?

The nearest training records of a picture beside the nearest records that no model was trained on. A
model that repeats what it saw draws closer to its training records. **Only the records of `faces`
are shown here, because nobody is in them**: they are synthetic (DiceBear `avataaars`). With real
people, showing the records would itself be a leak, whatever epsilon is."""


class Neighbours(NamedTuple):
    """A picture and the records nearest to it, in the order of the components."""

    picture: np.ndarray
    training: Pictures
    unseen: Pictures
    told: str


def nearest(
    shown: Shown | None,
    name: str,
    count: int,
    own: Run | None = None,
    progress: gr.Progress = PROGRESS,
) -> Iterator[Neighbours]:
    """The nearest of the first `count` training and test records of the first picture of the last
    generation; without one, of an example under `name`. The files live until the next step.
    """
    name = shown.checkpoint if shown else name
    with in_words():
        card = own_card(own) if name == YOURS else claim(name)
        # The name says nothing of a visitor's own model: its card alone decides.
        family = FACES if name == YOURS else family_of(name)
        if reason := known(family).hidden:
            raise ValueError(reason)
        if card.kind != "public" and (card.of_groups or card.dataset != DATA):
            raise ValueError(refusal(name, card, family))
        records = card.records if card.dataset == DATA else TRAIN_RECORDS
        count = whole("records", count, MIN_ATTACKED, min(MAX_SEARCHED, records))
        progress(0, desc="loading the model")
        load = loader(name, own)
        tokenizer = load().release.tokenizer
        shown = shown_or_example(shown, name, load, family_with(name, own))
        size = shown.coarse.shape[1]
        seen_NCHW, unseen_NCHW = (
            coarse_faces(split, count, size, progress) for split in ("train", "test")
        )
        drawn_BCHW = torch.from_numpy(shown.coarse).permute(0, 3, 1, 2).float() / LEVELS
        seen_BK, near_BK = nearest_records(drawn_BCHW, seen_NCHW, NEIGHBOURS)
        unseen_BK, far_BK = nearest_records(drawn_BCHW, unseen_NCHW, NEIGHBOURS)
        closest_NCHW = seen_NCHW[seen_BK[0]]
        decoded_NCHW = tokenizer.decode(tokenizer.encode(closest_NCHW))
        by_heart = float((decoded_NCHW - closest_NCHW).square().mean().sqrt())
        between = float(nearest_records(unseen_NCHW, seen_NCHW, 1)[1].median())
    told = (
        f"**{shown.title}.** Nearest of the first {count:,} training records (of {records:,}): "
        f"**{_levels(near_BK[0, 0])}** away. Nearest of {count:,} held-out records: "
        f"**{_levels(far_BK[0, 0])}**. {_comparison(near_BK[:, 0] < far_BK[:, 0])} For scale: a "
        f"held-out record itself is typically {_levels(between)} from its nearest training record, "
        f"and one that was drawn by heart would be about {_levels(by_heart)} away, which is what "
        "the codes lose. The unit is the root mean square over all pixels and colours at "
        f"{size}×{size}, in the {LEVELS} levels of a colour."
    )
    with TemporaryDirectory(prefix="dpwg-") as folder:
        kinds = (("train", seen_NCHW, seen_BK, near_BK), ("test", unseen_NCHW, unseen_BK, far_BK))
        pictures = []
        for split, records_NCHW, index_BK, distance_BK in kinds:
            labels = [
                f"{split} record {index}: {_levels(distance)}"
                for index, distance in zip(index_BK[0].tolist(), distance_BK[0], strict=True)
            ]
            images = enlarged(to_uint8(records_NCHW[index_BK[0]]))
            pictures.append(saved(Path(folder), split, images, labels))
        train, test = pictures
        yield Neighbours(enlarged(shown.coarse[:1])[0], train, test, told)


def _levels(distance: Tensor | float) -> str:
    return f"{LEVELS * float(distance):.1f} levels"


def _comparison(nearer_B: Tensor) -> str:
    if len(nearer_B) > 1:
        return (
            f"Of the {len(nearer_B)} pictures drawn, {int(nearer_B.sum())} are nearer to a "
            "training record; a model that repeats nothing would be at about half."
        )
    which = "training" if bool(nearer_B[0]) else "held-out"
    return f"The {which} one is nearer; for a model that repeats nothing that is a coin's toss."


def build_nearest(shown: gr.State, name: gr.Radio, own: gr.State) -> None:
    """Add the components; `shown` holds what was drawn last, `name` is the checkpoint's field,
    `own` holds the visitor's run.
    """
    gr.Markdown(INTRODUCTION)
    with gr.Row():
        with gr.Column(min_width=280):
            count = gr.Slider(
                MIN_ATTACKED,
                MAX_SEARCHED,
                value=500,
                step=50,
                label="Records of each kind to search",
                info="The first ones, rendered for the search.",
            )
            button = gr.Button("Find the nearest records", variant="primary")
            told = gr.Markdown(
                "Takes what the Generate tab drew last; before that, an example of the chosen "
                "checkpoint.",
                elem_classes="status",
            )
            drawn = picture("Generated, coarse", None, "told")
        with gr.Column(scale=2, min_width=300):
            looks: dict[str, Any] = {"columns": NEIGHBOURS, "height": "auto"}
            galleries = [
                gallery(place, ["compared", "framed"], label=label, **looks)
                for label, place in (
                    ("Nearest training records: synthetic, nobody's face", "nearest-training"),
                    ("Nearest held-out records, of no training set", "nearest-unseen"),
                )
            ]
    button.click(
        nearest,
        [shown, name, count, own],
        [drawn, *galleries, told],
        api_name="nearest",
        show_progress_on=told,
        **ON_MODEL,
    )
