"""The Generate tab: its fields, what follows from what, and the way from a link to pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from typing import Any

import gradio as gr
from gradio.components import Component

from dpwg.method.sampling import MAX_CANDIDATES, Sampling
from dpwg.release.folder import checkpoint_names
from dpwg.ui import drawing, families, parts
from dpwg.ui.drawing import Drawing, Frame, generate
from dpwg.ui.limits import MAX_IMAGES
from dpwg.ui.own import Chooser, Shown, choices, describe_checkpoint, refitted
from dpwg.ui.pipelines import SHOWN_PIXELS
from dpwg.ui.runs import Run
from dpwg.upsampling.upsamplers import all_upsamplers


def describe_upsampler(name: str) -> str:
    """What an upsampler does to the picture."""
    return all_upsamplers().get(name, "It is not here any more.")


def surprise(family: str) -> tuple[str, int]:
    """A caption worded as a family's training captions are, of no record of any set, and a seed."""
    return families.known(family).draw(), parts.random_seed()


def switched(family: str, own: Run | None = None, checkpoint: str | None = None) -> list[Any]:
    """What follows the choice of a family: its checkpoints, with the usual one chosen if no other
    is, its examples, the caption, the upsampler, and whether there are candidates.
    """
    names, lines = families.siblings(family), families.example_captions(family)
    chosen = checkpoint or families.usual_checkpoint(names)
    return [
        gr.Radio(choices=choices(own, names), value=chosen),
        gr.Dataset(samples=[[line] for line in lines], visible=bool(lines)),
        gr.Textbox(placeholder=families.placeholder(family)),
        families.suited_upsampler(chosen),
        gr.Slider(visible=families.reranked(family)),
    ]


def on_load(query: Mapping[str, str]) -> list[Any]:
    """Whether the page's address asks for images, the family, its examples, and the settings.

    Programs may name any checkpoint; a page has those of the family that is chosen.
    """
    linked = None
    try:
        linked = drawing.from_query(query)
    except ValueError as error:
        gr.Warning(str(error))
    asked = linked.checkpoint if linked else None
    family = families.family_of(asked or families.ordered(checkpoint_names())[0])
    checkpoint, examples, *_ = switched(family, checkpoint=asked)
    follow = [linked is not None, family, examples, checkpoint]
    if linked is None:
        return [*follow, *[gr.skip()] * (len(fields(Drawing)) - 1)]
    caption = gr.Textbox(value=linked.caption, placeholder=families.placeholder(family))
    candidates = gr.Slider(value=linked.candidates, visible=families.reranked(family))
    return [*follow, caption, *astuple(linked)[2:-1], candidates]


def build_generate(
    demo: gr.Blocks, names: Sequence[str], own: gr.State
) -> tuple[gr.State, Chooser]:
    """Add the tab's components. Loads no model. `own` holds the visitor's run.

    Returns what will hold the images shown last, and the choice of the checkpoint.
    """
    shown, usual = gr.State(), families.families_of(names)[0]
    with gr.Row(elem_classes="prompt"):
        caption = parts.caption_box("caption", placeholder=families.placeholder(usual))
        button = parts.big_button("Generate", "primary")
        lucky = parts.big_button("Surprise me")
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
    chosen, told = [checkpoint, own], [promise, card]
    events = [demo.load, checkpoint.change]
    gr.on(events, describe_checkpoint, chosen, told, trigger_mode="always_last")
    inputs = [checkpoint, caption, *settings]
    run: dict[str, Any] = {
        "inputs": [*inputs, own],
        "outputs": [*pictures, *extras, shown],
        "scroll_to_output": True,
        "show_progress_on": pictures[1],
        **parts.ON_MODEL,
    }
    # Before what it stops: the page sends off a trigger's handlers in their order here.
    gr.on([button.click, caption.submit, lucky.click], _stop_button, outputs=stop, **parts.QUIET)
    drawn = gr.on([button.click, caption.submit], generate, **run)
    made_up = lucky.click(surprise, family, [caption, settings[0]])
    surprised = made_up.success(generate, api_visibility="private", **run)
    family.input(
        switched, [family, own], [checkpoint, examples, caption, *settings[4:]], **parts.QUIET
    )
    pictures[3].select(_picked, [shown], extras[0], api_visibility="private")
    asked = gr.State(value=False)
    opened = [asked, family, examples, *inputs]
    loaded = demo.load(_on_load, outputs=opened, api_visibility="private")
    loaded.success(_stop_button, asked, stop, **parts.QUIET)
    linked = loaded.success(
        _generate_if_asked, **run | {"inputs": [asked, *inputs, own]}, api_visibility="private"
    )
    for event in (drawn, surprised, linked):
        for end in (event.success, event.failure):
            end(lambda: _stop_button(False), outputs=stop, **parts.QUIET)
    stop.click(
        lambda: ("Stopped.", _stop_button(False)),
        outputs=[pictures[-1], stop],
        cancels=[drawn, surprised, linked],
        **parts.QUIET,
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
    return drawing.swiped(shown, int(event.index))


def _build_examples(family: str, caption: gr.Textbox) -> gr.Dataset:
    lines = families.example_captions(family)
    examples = gr.Dataset(
        components=[caption],
        samples=[[line] for line in lines],
        samples_per_page=100,  # all of them: they are one row, which scrolls
        label="Examples",
        elem_id="examples",
        visible=bool(lines),
    )
    examples.click(lambda line: line[0], examples, caption, **parts.QUIET)
    return examples


def _build_settings(names: Sequence[str], own: gr.State) -> tuple[Chooser, Component, list[Any]]:
    """The checkpoint, what it promises, and the rest of `generate`'s inputs after the caption."""
    usual = families.usual_checkpoint(names)
    with gr.Group():
        family = parts.family_choice(names, "family")
        checkpoint = gr.Radio(names, value=usual, label="Checkpoint")
        promise = gr.Markdown(elem_classes="promise")
    with gr.Group():
        count = parts.slider("Images", 1, MAX_IMAGES, 1)
        seed = parts.seed_field(api_name="random_seed")
    with gr.Accordion("More settings", open=False):
        info = "Higher values follow the caption more closely; 1 turns guidance off."
        guidance = parts.slider("Guidance", 0, 10, Sampling.guidance, 0.1, info=info)
        info = "Higher values vary more; 0 always takes the likeliest code."
        temperature = parts.slider("Temperature", 0, 2, Sampling.temperature, 0.05, info=info)
        fitting = families.suited_upsampler(usual)
        upsampler = parts.upsampler_choice(fitting, describe_upsampler(fitting))
        candidates = parts.slider(
            "Candidates",
            *(1, MAX_CANDIDATES, Sampling.candidates),
            info="A public reranker keeps the one that fits the caption best; 1 turns it off.",
            visible=families.reranked(families.families_of(names)[0]),
        )
    upsampler.change(
        lambda name: gr.Dropdown(info=describe_upsampler(name)),
        upsampler,
        upsampler,
        api_visibility="private",
    )
    checkpoint.input(refitted, [upsampler, checkpoint, own], upsampler, **parts.QUIET)
    settings = [seed, count, guidance, temperature, upsampler, candidates]
    return (family, checkpoint), promise, settings


def _build_pictures() -> list[Any]:
    """The first outputs of `generate`, up to the status."""
    shown: list[Any] = []
    coarse = drawing.COARSE_TITLE.format("", "chosen checkpoint")
    with gr.Row():
        for name, title in (("coarse", coarse), ("images", drawing.IMAGE_TITLE.format(""))):
            with gr.Column(min_width=280):
                shown.append(gr.Markdown(title, elem_classes="title"))
                shown.append(parts.gallery(name, "pictures", show_label=False))
    return [*shown, gr.Markdown("Write a caption and press Generate.", elem_classes="status")]


def _build_extras() -> list[Component]:
    """The last outputs of `generate`: the slider, who drew what, the files."""
    with gr.Accordion("Swipe from coarse to upsampled"), gr.Row():
        with gr.Column(scale=2, min_width=280):
            looks: dict[str, Any] = {"show_label": False, "max_height": SHOWN_PIXELS}
            swipe = gr.ImageSlider(elem_id="swipe", **parts.SHOWN, **looks)
        with gr.Column(min_width=220):
            authors = gr.Markdown(
                "Your first picture appears here. If you drew several, click one of them."
            )
    with gr.Accordion("Files to download: the pictures and result.json", open=False):
        files = gr.Files(show_label=False, interactive=False)
    return [swipe, authors, files]
