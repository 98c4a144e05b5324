"""The checkpoint that was chosen, what it promises, and what was drawn with it last.

It may be the model that the visitor trained, on that page alone. Its name is the same for everybody
and stands for the run in the page's own session, which only the server holds. No name, number or
path leads to the run of another visitor.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from dpwg.privacy.accounting import epsilon_text
from dpwg.privacy.card import PrivacyCard
from dpwg.privacy.curves import explain
from dpwg.release.folder import checkpoint_names, load_card
from dpwg.ui import families
from dpwg.ui.parts import in_words
from dpwg.ui.pipelines import Load, load_pipeline, load_trained, named
from dpwg.ui.runs import Run

YOURS = "your model"
Chooser = tuple[gr.Radio, gr.Radio]
"""A field for the family and one for its checkpoints."""


class Shown(NamedTuple):
    """The images of the last generation, for the other tabs and the slider."""

    checkpoint: str
    coarse: np.ndarray
    image: np.ndarray
    title: str


def shown_or_example(shown: Shown | None, name: str, own: Run | None = None) -> Shown:
    """The last generation; without one, an example under a checkpoint."""
    if shown is not None:
        return shown
    result = loader(name, own)()(families.first_caption(family_with(name, own)), seed=0)
    return Shown(name, result.coarse, result.image, f"An example of {name}, seed 0")


def is_trained(own: Run | None) -> bool:
    """Whether there is a model of the visitor's, trained to its last step and not yet removed."""
    return own is not None and own.zipped is not None


def folder_of(name: str, own: Run | None = None) -> Path:
    """The folder of a named checkpoint or of the visitor's release; ValueError, in words, where
    there is none.
    """
    if name != YOURS:
        return named(name)
    if own is None or not is_trained(own):
        raise ValueError(
            "There is no model of yours here, or it is gone: train one in the Train tab to its "
            "last step, or choose another checkpoint."
        )
    return own.release


def loader(name: str, own: Run | None) -> Load:
    """What loads a named checkpoint, or the visitor's own model where that is asked for."""
    if name == YOURS:
        return functools.partial(load_trained, folder_of(name, own))
    return functools.partial(load_pipeline, name)


def family_with(name: str, own: Run | None) -> str:
    """The family of a named checkpoint, or of what the visitor's own model began from."""
    if name == YOURS and own is not None and own.order is not None:
        return families.family_of(own.order.base)
    return families.family_of(name)


def refitted(upsampler: str, checkpoint: str, own: Run | None = None) -> str:
    """The upsampler after another checkpoint was chosen: that which suits it, unless the one in use
    suits none and so was chosen by hand.
    """
    if upsampler not in map(families.suited_upsampler, checkpoint_names()):
        return upsampler
    return families.suited_upsampler(folder_of(checkpoint, own))


def card_of(name: str, own: Run | None = None) -> PrivacyCard:
    """The card of a named checkpoint or of the visitor's own; ValueError where there is none."""
    return load_card(folder_of(name, own))


def describe_checkpoint(name: str, own: Run | None = None) -> tuple[str, str]:
    """What a checkpoint promises, in one sentence and as its whole card, both Markdown."""
    with in_words():
        card = card_of(name, own)
    short, told = label(card), explain(card.ledger)
    short = f"{short} at δ = {card.delta:.4g}" if card.kind == "private" else short.capitalize()
    if group := _group(card):
        a = "an" if group[0] in "aeiou" else "a"
        told = told.replace("a training record", f"{a} {group} in the training set")
    return f"**{short}.** {told}", card.to_markdown()


def author(card: PrivacyCard) -> str:
    """Who drew a coarse picture: what its model promises, in a few words."""
    if card.kind == "private":
        return f"private model ({label(card)})"
    return "public model (ε = 0)" if card.kind == "public" else "model trained without privacy"


def label(card: PrivacyCard) -> str:
    """A column's title: epsilon, and what it is for where that is more than an image."""
    if card.kind != "private":
        return "public, ε = 0" if card.kind == "public" else "no privacy"
    group = _group(card)
    return f"ε = {epsilon_text(card.epsilon)}" + (f" per {group}" if group else "")


def _group(card: PrivacyCard) -> str:
    """The column that tells groups apart, or "group" where that is not a plain word."""
    if not card.of_groups:
        return ""
    found = re.search(r"the same '([a-z]+)'", card.unit)
    return found[1] if found else "group"


def choices(own: Run | None, names: Sequence[str]) -> list[tuple[str, str]]:
    """Labels and values of the named checkpoints, the visitor's own model last."""
    mine = [(f"yours, {label(card_of(YOURS, own))}", YOURS)] if is_trained(own) else []
    return [*((name, name) for name in names), *mine]


def offered(own: Run | None, names: Sequence[str], chosen: str) -> gr.Radio:
    """The choice of checkpoints anew; what is gone is no longer chosen."""
    found = choices(own, names)
    gone: dict[str, Any] = {"value": families.usual_checkpoint(names)}
    return gr.Radio(choices=found, **({} if chosen in [value for _, value in found] else gone))


def offer_after(
    events: Sequence[Any], own: gr.State, choosers: Sequence[Chooser], rows: Sequence[gr.Gallery]
) -> None:
    """After events that make or remove a model, offer it in `choosers`, and make room in `rows`,
    which have a picture of each checkpoint of the last chooser's family.
    """
    sets, radios = zip(*choosers, strict=True)

    def update(own: Run | None, *values: str) -> list[Any]:
        chosen = zip(values[: len(radios)], values[len(radios) :], strict=True)
        wide = len(families.siblings(values[len(radios) - 1])) + is_trained(own)
        radio = [offered(own, families.siblings(family), value) for family, value in chosen]
        return [*radio, *(gr.Gallery(columns=wide) for _ in rows)]

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    for event in events:
        for then in (event.success, event.failure):  # `event.then` is not called after a failure
            then(update, [own, *sets, *radios], [*radios, *rows], **quiet)
