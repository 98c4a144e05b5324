"""The Attack tab's records: whose they are, and faces that are rendered and encoded on the spot."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
import torch
from torch import Tensor

from dpwg.data.faces import TRAIN_RECORDS
from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.privacy.card import PrivacyCard
from dpwg.release.folder import checkpoint_names, find_checkpoint, load_card
from dpwg.training.encodings import coarse_batches, encode_records, prepare_examples
from dpwg.training.examples import Examples
from dpwg.ui.families import REAL_PEOPLE, family_of, known
from dpwg.ui.worker import Faces

DATA, OTHERS = "faces-train", "faces-test"
PROGRESS = gr.Progress()
"""Stands in handlers' signatures for the progress bar of each call."""
CHUNK = 50


def claim(name: str) -> PrivacyCard:
    """The card of a named checkpoint; ValueError, in words, for a path or a false card."""
    if name not in (names := checkpoint_names()):
        raise ValueError(f"Expected checkpoint={name!r:.80} in {names}.")
    return load_card(find_checkpoint(name))


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


def encoded_faces(records: Faces, pipe: DPWaveletPipeline, progress: gr.Progress) -> Examples:
    """Records as the checkpoint was trained on them."""
    with TemporaryDirectory(prefix="dpwg-") as folder:
        inputs = (records, pipe.encoder, pipe.release.tokenizer, Path(folder))
        for done in encode_records(*inputs):
            progress((done.step, done.steps), desc=f"{records.name}: {done.stage}", unit="records")
        return prepare_examples(*inputs)


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
