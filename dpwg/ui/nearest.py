"""The Attack tab's records: whose they are, and which are nearest to a generated picture."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import gradio as gr
import numpy as np
import torch
from torch import Tensor

from dpwg.data.faces import TRAIN_RECORDS
from dpwg.measure.membership import nearest_records
from dpwg.method.pipeline import to_uint8
from dpwg.privacy.card import PrivacyCard
from dpwg.training.encodings import coarse_batches
from dpwg.ui.families import FACES, REAL_PEOPLE, family_of, known
from dpwg.ui.limits import MAX_SEARCHED, MIN_ATTACKED, whole
from dpwg.ui.own import YOURS, Shown, card_of, loader, shown_or_example
from dpwg.ui.parts import ON_MODEL, PROGRESS, in_words, picture, row_of_pictures, slider
from dpwg.ui.pipelines import Pictures, enlarged, saved
from dpwg.ui.runs import Faces, Run

DATA = "faces-train"
CHUNK = 50
NEIGHBOURS = 3
LEVELS = 255


def refusal(name: str, card: PrivacyCard, family: str | None = None) -> str:
    """Why a checkpoint of a family, by default that in its name, is not attacked here; empty where
    it is. An attack's scores are as private as the records, so it shows only what was trained
    on the synthetic faces.
    """
    if card.kind == "public":
        return f"{name} saw no sensitive record: there is nothing to infer."
    if hidden := known(family_of(name) if family is None else family).hidden:
        was = "was" if hidden == REAL_PEOPLE else "may have been"
        return (
            f"This checkpoint {was} trained on photographs of real people. Membership inference "
            "results about them are private, so they are not shown here."
        )
    if card.of_groups:
        return f"{name} protects groups of images; single ones are not what its promise is about."
    if card.dataset != DATA or card.records > TRAIN_RECORDS:
        return (
            f"{name} was trained on {card.dataset!r:.80}: those records are private and not here. "
            f"Only checkpoints of {DATA!r}, whose records are nobody's, are attacked on this page; "
            "`python -m dpwg attack` attacks yours, and what it finds is as private as its records."
        )
    return ""


def coarse_faces(split: str, count: int, size: int, progress: gr.Progress) -> Tensor:
    """The first `count` coarse images of a split in [0, 1], (count, 3, size, size)."""
    parts = []
    for first in range(0, count, CHUNK):
        progress((first, count), desc=f"faces-{split}", unit="records")
        parts.append(_coarse_chunk(split, first, size))
    return torch.cat(parts)[:count].float() / 255


@functools.cache
def _coarse_chunk(split: str, first: int, size: int) -> Tensor:
    return torch.cat(list(coarse_batches(Faces(split, range(first, first + CHUNK)), size)))


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
        card = card_of(name, own)
        # The name says nothing of a visitor's own model: its card alone decides.
        family = FACES if name == YOURS else family_of(name)
        if reason := known(family).hidden:
            raise ValueError(reason)
        if card.kind != "public" and (card.of_groups or card.dataset != DATA):
            raise ValueError(refusal(name, card, family))
        records = card.records if card.dataset == DATA else TRAIN_RECORDS
        count = whole("records", count, MIN_ATTACKED, min(MAX_SEARCHED, records))
        progress(0, desc="loading the model")
        tokenizer = loader(name, own)().release.tokenizer
        shown = shown_or_example(shown, name, own)
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
        f"held-out record is typically {_levels(between)} from its nearest training record, and "
        f"one that was drawn by heart would be about {_levels(by_heart)} away, which the codes "
        f"lose. The unit: root mean square over pixels and colours at {size}×{size}, in the "
        f"{LEVELS} levels of a colour."
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
        yield Neighbours(enlarged(shown.coarse[:1])[0], pictures[0], pictures[1], told)


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
    with gr.Row():
        with gr.Column(min_width=280):
            count = slider("Records of each kind to search", MIN_ATTACKED, MAX_SEARCHED, 500, 50)
            button = gr.Button("Find the nearest records", variant="primary")
            told = gr.Markdown(
                "Takes what the Generate tab drew last; before that, an example of the chosen "
                "checkpoint.",
                elem_classes="status",
            )
            drawn = picture("Generated, coarse", None, "told")
        with gr.Column(scale=2, min_width=300):
            training = "Nearest training records: synthetic, nobody's face"
            unseen = "Nearest held-out records, of no training set"
            rows = [
                row_of_pictures("nearest-training", training, NEIGHBOURS),
                row_of_pictures("nearest-unseen", unseen, NEIGHBOURS),
            ]
    inputs, outputs = [shown, name, count, own], [drawn, *rows, told]
    button.click(nearest, inputs, outputs, show_progress_on=told, **ON_MODEL)
