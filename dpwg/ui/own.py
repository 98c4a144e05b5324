"""The model that a visitor trained, as one more checkpoint to draw with: on that page alone.

Its name is the same for everybody and stands for the run in the page's own session, which only the
server holds. No name, number or path leads to the run of another visitor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.privacy.accounting import epsilon_text
from dpwg.privacy.card import PrivacyCard
from dpwg.release.folder import checkpoint_names, load_card
from dpwg.ui.families import family_of, siblings, suited_upsampler, usual_checkpoint
from dpwg.ui.pipelines import load_pipeline, load_trained
from dpwg.ui.runs import Run

YOURS = "your model"


def is_trained(own: Run | None) -> bool:
    """Whether there is a model of the visitor's, trained to its last step and not yet removed."""
    return own is not None and own.zipped is not None


def release_of(own: Run | None) -> Path:
    """The folder of the visitor's release; raises ValueError, in words, where there is none."""
    if own is None or not is_trained(own):
        raise ValueError(
            "There is no model of yours here, or it is gone: train one in the Train tab to its "
            "last step, or choose another checkpoint."
        )
    return own.release


def loader(name: str, own: Run | None) -> Callable[[], DPWaveletPipeline]:
    """What loads a named checkpoint, or the visitor's own model where that is asked for."""
    if name == YOURS:
        return functools.partial(load_trained, release_of(own))
    return functools.partial(load_pipeline, name)


def family_with(name: str, own: Run | None) -> str:
    """The family of a named checkpoint, or of what the visitor's own model began from."""
    if name == YOURS and own is not None and own.order is not None:
        return family_of(own.order.base)
    return family_of(name)


def refitted(upsampler: str, checkpoint: str, own: Run | None = None) -> str:
    """The upsampler after another checkpoint was chosen: that which suits it, unless the one in use
    suits none and so was chosen by hand.
    """
    suited = suited_upsampler(release_of(own) if checkpoint == YOURS else checkpoint)
    return suited if upsampler in map(suited_upsampler, checkpoint_names()) else upsampler


def own_card(own: Run | None) -> PrivacyCard:
    """The card of the visitor's own model; raises ValueError where there is none."""
    return load_card(release_of(own))


def choices(own: Run | None, names: Sequence[str]) -> list[tuple[str, str]]:
    """Labels and values of the named checkpoints, the visitor's own model last."""
    named = [(name, name) for name in names]
    if not is_trained(own):
        return named
    return [*named, (f"yours, ε = {epsilon_text(own_card(own).epsilon)}", YOURS)]


def offered(own: Run | None, names: Sequence[str], chosen: str) -> gr.Radio:
    """The choice of checkpoints anew; what is gone is no longer chosen."""
    found = choices(own, names)
    gone: dict[str, Any] = {"value": usual_checkpoint(names)}
    return gr.Radio(choices=found, **({} if chosen in [value for _, value in found] else gone))


class Chooser(NamedTuple):
    """A field for the family and one for its checkpoints."""

    family: gr.Radio
    checkpoint: gr.Radio


def offer_after(
    events: Sequence[Any], own: gr.State, choosers: Sequence[Chooser], rows: Sequence[gr.Gallery]
) -> None:
    """After events that make or remove a model, offer it in `choosers`, and make room in `rows`,
    which have a picture of each checkpoint of the last chooser's family.
    """
    radios = [chooser.checkpoint for chooser in choosers]

    def update(own: Run | None, *values: str) -> list[Any]:
        families, chosen = values[: len(radios)], values[len(radios) :]
        wide = len(siblings(families[-1])) + is_trained(own)
        radio = [
            offered(own, siblings(f), value) for f, value in zip(families, chosen, strict=True)
        ]
        return [*radio, *(gr.Gallery(columns=wide) for _ in rows)]

    for event in events:
        for then in (event.success, event.failure):  # `event.then` is not called after a failure
            then(
                update,
                [own, *(chooser.family for chooser in choosers), *radios],
                [*radios, *rows],
                api_visibility="private",
                show_progress="hidden",
            )
