"""The Generate tab: its fields, what follows from what, and the way from a link to pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from typing import Any, NamedTuple

import gradio as gr
from gradio.components import Component

from dpwg.method.sampling import MAX_CANDIDATES, Sampling
from dpwg.release.folder import checkpoint_names
from dpwg.ui.drawing import COARSE_TITLE, IMAGE_TITLE, Frame, generate, swiped
from dpwg.ui.families import (
    example_captions,
    families_of,
    family_of,
    known,
    placeholder,
    reranked,
    siblings,
    suited_upsampler,
    usual_checkpoint,
)
from dpwg.ui.limits import MAX_IMAGES
from dpwg.ui.own import Chooser, choices, refitted
from dpwg.ui.parts import (
    ON_MODEL,
    QUIET,
    big_button,
    caption_box,
    family_choice,
    gallery,
    seed_field,
    upsampler_choice,
)
from dpwg.ui.pictures import SHOWN_PIXELS
from dpwg.ui.promises import describe_checkpoint
from dpwg.ui.runs import Run
from dpwg.ui.sharing import Drawing, from_query
from dpwg.ui.shown import Shown, random_seed
from dpwg.upsampling.upsamplers import all_upsamplers


def describe_upsampler(name: str) -> str:
    """What an upsampler does to the picture."""
    return all_upsamplers().get(name, "It is not here any more.")


def surprise(family: str) -> tuple[str, int]:
    """A caption worded as a family's training captions are, of no record of any set, and a seed."""
    return known(family).draw(), random_seed()


class Switched(NamedTuple):
    """What follows the choice of a family, in the order of its components."""

    checkpoint: gr.Radio
    examples: gr.Dataset
    caption: gr.Textbox
    upsampler: str
    candidates: gr.Slider


def switched(family: str, own: Run | None = None, checkpoint: str | None = None) -> Switched:
    """The checkpoints of a family with one chosen, by default the usual one, and all that suits."""
    names, lines = siblings(family), example_captions(family)
    chosen = checkpoint or usual_checkpoint(names)
    return Switched(
        gr.Radio(choices=choices(own, names), value=chosen),
        gr.Dataset(samples=[[line] for line in lines], visible=bool(lines)),
        gr.Textbox(placeholder=placeholder(family)),
        suited_upsampler(chosen),
        gr.Slider(visible=reranked(family)),
    )


def on_load(query: Mapping[str, str]) -> list[Any]:
    """Whether the page's address asks for images, the family, its examples, and the settings.

    Programs may name any checkpoint; a page has those of the family that is chosen.
    """
    drawing = None
    try:
        drawing = from_query(query)
    except ValueError as error:
        gr.Warning(str(error))
    family = family_of(drawing.checkpoint) if drawing else families_of(checkpoint_names())[0]
    fitting = switched(family, checkpoint=drawing.checkpoint if drawing else None)
    follow = [family, fitting.examples, fitting.checkpoint]
    if drawing is None:
        return [False, *follow, *[gr.skip()] * (len(fields(Drawing)) - 1)]
    caption = gr.Textbox(value=drawing.caption, placeholder=placeholder(family))
    candidates = gr.Slider(value=drawing.candidates, visible=reranked(family))
    return [True, *follow, caption, *astuple(drawing)[2:-1], candidates]


def build_generate(
    demo: gr.Blocks, names: Sequence[str], own: gr.State
) -> tuple[gr.State, Chooser]:
    """Add the tab's components. Loads no model. `own` holds the visitor's run.

    Returns what will hold the images shown last, and the choice of the checkpoint.
    """
    shown, usual = gr.State(), families_of(names)[0]
    with gr.Row(elem_classes="prompt"):
        caption = caption_box("caption", placeholder=placeholder(usual))
        button = big_button("Generate", "primary")
        lucky = big_button("Surprise me")
    examples = _build_examples(usual, caption)
    with gr.Row(elem_classes="page"):
        with gr.Column(elem_classes="settings"):
            chooser, promise, settings = _build_settings(names, own)
            family, checkpoint = chooser
        with gr.Column(elem_classes="results"):
            pictures = _build_pictures()
            stop = gr.Button("Stop drawing", size="sm", visible=False)
        with gr.Column(elem_classes="extras"):
            extras = _build_extras()
            with gr.Accordion("Privacy card of the chosen checkpoint", open=False):
                card = gr.Markdown(elem_classes="card")
    gr.on(
        [demo.load, checkpoint.change],
        describe_checkpoint,
        inputs=[checkpoint, own],
        outputs=[promise, card],
        api_name="describe_checkpoint",
        trigger_mode="always_last",
    )
    inputs = [checkpoint, caption, *settings]
    run: dict[str, Any] = {
        "inputs": [*inputs, own],
        "outputs": [*pictures, *extras, shown],
        "scroll_to_output": True,
        "show_progress_on": pictures[1],
        **ON_MODEL,
    }
    # Before what it stops: the page sends off a trigger's handlers in their order here.
    gr.on([button.click, caption.submit, lucky.click], _stop_button, outputs=stop, **QUIET)
    drawn = gr.on([button.click, caption.submit], generate, api_name="generate", **run)
    surprised = lucky.click(
        surprise, family, outputs=[caption, settings[0]], api_name="surprise"
    ).success(generate, api_visibility="private", **run)
    family.input(switched, [family, own], [checkpoint, examples, caption, *settings[4:]], **QUIET)
    pictures[3].select(_picked, [shown], extras[0], api_visibility="private")
    asked = gr.State(value=False)
    loaded = demo.load(
        _on_load, outputs=[asked, family, examples, *inputs], api_visibility="private"
    )
    loaded.success(_stop_button, asked, stop, **QUIET)
    linked = loaded.success(
        _generate_if_asked, **run | {"inputs": [asked, *inputs, own]}, api_visibility="private"
    )
    for drawing in (drawn, surprised, linked):
        for end in (drawing.success, drawing.failure):
            end(lambda: _stop_button(False), outputs=stop, **QUIET)
    stop.click(
        lambda: ("Stopped.", _stop_button(False)),
        outputs=[pictures[-1], stop],
        cancels=[drawn, surprised, linked],
        **QUIET,
    )
    return shown, chooser


def _stop_button(visible: bool = True) -> gr.Button:
    return gr.Button(visible=visible)


def _on_load(request: gr.Request) -> list[Any]:
    return on_load(dict(request.query_params))


def _generate_if_asked(asked: bool, *inputs: Any) -> Iterator[Sequence[Any]]:
    if asked:
        yield from generate(*inputs)
    else:  # to yield nothing would empty the page
        yield [gr.skip()] * len(Frame._fields)


def _picked(shown: Shown | None, event: gr.SelectData) -> Any:
    return swiped(shown, int(event.index))


def _build_examples(family: str, caption: gr.Textbox) -> gr.Dataset:
    lines = example_captions(family)
    examples = gr.Dataset(
        components=[caption],
        samples=[[line] for line in lines],
        samples_per_page=100,  # all of them: they are one row, which scrolls
        label="Examples",
        elem_id="examples",
        visible=bool(lines),
    )
    examples.click(lambda line: line[0], examples, caption, **QUIET)
    return examples


def _build_settings(names: Sequence[str], own: gr.State) -> tuple[Chooser, Component, list[Any]]:
    """The checkpoint, what it promises, and the rest of `generate`'s inputs after the caption."""
    usual = usual_checkpoint(names)
    with gr.Group():
        family = family_choice(names, "family")
        checkpoint = gr.Radio(names, value=usual, label="Checkpoint")
        promise = gr.Markdown(elem_classes="promise")
    with gr.Group():
        count = gr.Slider(1, MAX_IMAGES, value=1, step=1, label="Images")
        seed = seed_field(api_name="random_seed")
    with gr.Accordion("More settings", open=False):
        guidance = gr.Slider(
            0,
            10,
            value=Sampling.guidance,
            step=0.1,
            label="Guidance",
            info="Higher values follow the caption more closely; 1 turns guidance off.",
        )
        temperature = gr.Slider(
            0,
            2,
            value=Sampling.temperature,
            step=0.05,
            label="Temperature",
            info="Higher values vary more; 0 always takes the likeliest code.",
        )
        upsampler = upsampler_choice(
            suited_upsampler(usual), describe_upsampler(suited_upsampler(usual))
        )
        candidates = gr.Slider(
            1,
            MAX_CANDIDATES,
            value=Sampling.candidates,
            step=1,
            label="Candidates",
            info="How many coarse candidates to draw; a public reranker keeps the one that fits "
            "the caption best. 1 turns it off.",
            visible=reranked(families_of(names)[0]),
        )
    upsampler.change(
        lambda name: gr.Dropdown(info=describe_upsampler(name)),
        upsampler,
        upsampler,
        api_visibility="private",
    )
    checkpoint.input(refitted, [upsampler, checkpoint, own], upsampler, **QUIET)
    settings = [seed, count, guidance, temperature, upsampler, candidates]
    return Chooser(family, checkpoint), promise, settings


def _build_pictures() -> list[Any]:
    """The first outputs of `generate`, up to the status."""
    shown: list[Any] = []
    with gr.Row():
        for name, title in (
            ("coarse", COARSE_TITLE.format("", "chosen checkpoint")),
            ("images", IMAGE_TITLE.format("")),
        ):
            with gr.Column(min_width=280):
                shown.append(gr.Markdown(title, elem_classes="title"))
                shown.append(gallery(name, "pictures", show_label=False))
    return [*shown, gr.Markdown("Write a caption and press Generate.", elem_classes="status")]


def _build_extras() -> list[Component]:
    """The last outputs of `generate`: the slider, who drew what, the files."""
    with gr.Accordion("Swipe from coarse to upsampled"), gr.Row():
        with gr.Column(scale=2, min_width=280):
            swipe = gr.ImageSlider(
                show_label=False,
                format="png",
                interactive=False,
                buttons=["fullscreen"],
                max_height=SHOWN_PIXELS,
                elem_id="swipe",
            )
        with gr.Column(min_width=220):
            authors = gr.Markdown(
                "Your first picture appears here. If you drew several, click one of them."
            )
    with gr.Accordion("Files to download: the pictures and result.json", open=False):
        files = gr.Files(show_label=False, interactive=False)
    return [swipe, authors, files]
