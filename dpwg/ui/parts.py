"""What several pages are built of, so that one thing looks and works alike everywhere."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr

from dpwg.data.records import MAX_CAPTION_CHARACTERS
from dpwg.ui import families
from dpwg.upsampling.upsamplers import all_upsamplers

ON_MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
"""How events are run that need a model: one at a time, since two would each take twice as long."""
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""How events are run that only move things on the page."""
PROGRESS = gr.Progress()
"""Stands in handlers' signatures for the progress bar of each call."""


@contextmanager
def in_words() -> Iterator[None]:
    """What is refused below is told to the visitor."""
    try:
        yield
    except (TypeError, ValueError, OSError, ModuleNotFoundError) as error:
        raise gr.Error(worded(error)) from error


def worded(error: Exception) -> str:
    """An error as its own words tell it, unless these may name a path of the server."""
    if isinstance(error, OSError):
        return "The server could not read or write a file that this needs; its log says which."
    return str(error)


def random_seed() -> int:
    """A seed that is short enough to be read out."""
    return random.randrange(1_000_000)


def caption_box(elem_id: str, value: str = "", placeholder: str = "") -> gr.Textbox:
    """A field for one caption, in a row with the button that draws it."""
    return gr.Textbox(
        value,
        label="Caption",
        info="Leave empty to draw without a caption.",
        placeholder=placeholder,
        max_lines=4,
        max_length=MAX_CAPTION_CHARACTERS,
        scale=6,
        min_width=300,
        elem_id=elem_id,
    )


def big_button(text: str, variant: Any = "secondary") -> gr.Button:
    """A button beside a field for captions."""
    return gr.Button(text, variant=variant, size="lg", min_width=140)


def family_choice(names: Sequence[str], elem_id: str) -> gr.Radio:
    """The families of all names; hidden where there is one alone."""
    found = families.families_of(names)
    choices = [(families.known(family).title, family) for family in found]
    one = len(choices) == 1
    return gr.Radio(choices, value=found[0], label="Data set", visible=not one, elem_id=elem_id)


def slider(
    label: str, low: float, high: float, value: float, step: float = 1, **options: Any
) -> gr.Slider:
    """A number between bounds, an integer unless the step is smaller."""
    digits = 0 if step == 1 else None
    return gr.Slider(low, high, value=value, step=step, precision=digits, label=label, **options)


def seed_field(api_name: str | None = None) -> gr.Number:
    """A seed and a button that makes one up, which programs can press where it has a name."""
    seed = gr.Number(0, step=1, label="Seed")
    dice = gr.Button("⚄ Random seed", size="sm")
    seen = "public" if api_name else "private"
    dice.click(random_seed, outputs=seed, api_name=api_name, api_visibility=seen)
    return seed


def upsampler_choice(value: str, info: str | None = None) -> gr.Dropdown:
    """Every upsampler that there is."""
    return gr.Dropdown(list(all_upsamplers()), value=value, label="Upsampler", info=info)


SHOWN: dict[str, Any] = {
    "format": "png",
    "interactive": False,
    "buttons": ["fullscreen", "download"],
}


def gallery(elem_id: str, elem_classes: str | list[str], **options: Any) -> gr.Gallery:
    """Pictures to look at."""
    return gr.Gallery(elem_id=elem_id, elem_classes=elem_classes, **SHOWN, **options)


def row_of_pictures(elem_id: str, label: str, columns: int) -> gr.Gallery:
    """Pictures to compare, all in one row."""
    looks: dict[str, Any] = {"label": label, "columns": columns, "height": "auto"}
    return gallery(elem_id, ["compared", "framed"], **looks)


def picture(label: str, elem_id: str | None = None, *classes: str) -> gr.Image:
    """One picture to look at."""
    return gr.Image(label=label, elem_id=elem_id, elem_classes=["framed", *classes], **SHOWN)


def plot(label: str) -> gr.Plot:
    """A figure."""
    return gr.Plot(label=label, format="png", elem_classes="framed")


def plots(*labels: str) -> list[gr.Plot]:
    """Figures side by side."""
    made = []
    with gr.Row():
        for label in labels:
            with gr.Column(min_width=280):
                made.append(plot(label))
    return made


def table(label: str, headers: list[str], **options: Any) -> gr.Dataframe:
    """Figures to read."""
    return gr.Dataframe(label=label, headers=headers, interactive=False, **options)
