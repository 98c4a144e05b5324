"""The Attack tab's records: whose they are, and faces rendered on the spot with every step told."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
import torch
from torch import Tensor

from dpwg.data.faces import TRAIN_RECORDS, face
from dpwg.data.records import RecordList
from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.privacy.card import PrivacyCard
from dpwg.release.folder import checkpoint_names, find_checkpoint, load_card
from dpwg.training.encodings import coarse_batches, encode_records, prepare_examples
from dpwg.training.examples import Examples
from dpwg.ui.families import REAL_PEOPLE, family_of, known

DATA, OTHERS = "faces-train", "faces-test"
PROGRESS = gr.Progress()
"""Stands in handlers' signatures for the progress bar of each call."""
CHUNK = 50
WORK = 3
"""What `encoded_faces` tells of each record: rendered, caption encoded, image encoded."""

Told = Callable[[int, str], None]
"""Called with how much is done of `WORK` times the records, and with what is being done."""


def claim(name: str) -> PrivacyCard:
    """The card of a named checkpoint; a path or a false card is an error in words."""
    try:
        if name not in (names := checkpoint_names()):
            raise ValueError(f"Expected checkpoint={name!r:.80} in {names}.")
        return load_card(find_checkpoint(name))
    except ValueError as error:
        raise gr.Error(str(error)) from error


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
            "`python -m dpwg audit` attacks yours, and what it finds is as private as its records."
        )
    return ""


def encoded_faces(
    split: str, indices: Sequence[int], pipe: DPWaveletPipeline, told: Told
) -> Examples:
    """These records of a split as the checkpoint was trained on them."""
    rendered = []
    for done, index in enumerate(indices, start=1):
        rendered.append(face(split, index))
        told(done, f"rendering {split} records")
    records = RecordList(f"faces-{split}", "fresh", rendered)
    before = {"captions": len(records), "images": 2 * len(records)}

    with TemporaryDirectory(prefix="dpwg-") as folder:
        given = (records, pipe.encoder, pipe.release.tokenizer, Path(folder))
        for report in encode_records(*given):
            told(before[report.stage] + report.step, f"encoding {split} {report.stage}")
        return prepare_examples(*given)


def coarse_faces(split: str, count: int, size: int, told: Told) -> Tensor:
    """The first `count` coarse images of a split in [0, 1], (count, 3, size, size)."""
    parts = []
    for first in range(0, count, CHUNK):
        parts.append(_coarse_chunk(split, first, size))
        told(min(first + CHUNK, count), f"rendering {split} records")
    return torch.cat(parts)[:count].float() / 255


@functools.cache
def _coarse_chunk(split: str, first: int, size: int) -> Tensor:
    records = [face(split, index) for index in range(first, first + CHUNK)]
    chunk = RecordList(f"faces-{split}", "fresh", records)
    return torch.cat(list(coarse_batches(chunk, size)))
