"""The Generate tab: a caption to pictures, shown scale by scale as the model draws them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from gradio.components import Component
from PIL import Image

from dpwg.data.records import MAX_CAPTION_CHARACTERS
from dpwg.method.pipeline import MAX_SEED, GenerationResult
from dpwg.method.sampling import MAX_CANDIDATES, Sampling
from dpwg.privacy.card import PrivacyCard
from dpwg.release.folder import checkpoint_names
from dpwg.ui.families import (
    example_captions,
    families_of,
    family_choices,
    family_of,
    known,
    placeholder,
    reranked,
    siblings,
    suited_upsampler,
    usual_checkpoint,
)
from dpwg.ui.limits import MAX_IMAGES, whole
from dpwg.ui.own import YOURS, Chooser, choices, loader, refitted
from dpwg.ui.pictures import SHOWN_PIXELS, Pictures, enlarged, saved
from dpwg.ui.pipelines import MODEL_QUEUE, draw
from dpwg.ui.promises import author, describe_checkpoint
from dpwg.ui.runs import Run
from dpwg.ui.sharing import Drawing, from_query, to_query
from dpwg.ui.shown import Shown, random_seed
from dpwg.upsampling.upsamplers import all_upsamplers

IMAGE_TITLE = "### Image {}\n*public upsampler*"


class Frame(NamedTuple):
    """What the page shows at one moment, in the order of its components."""

    coarse_title: str
    coarse: Pictures
    image_title: str
    images: Pictures | None
    status: str
    swipe: tuple[np.ndarray, np.ndarray] | None = None
    authors: str = ""
    files: list[str] | None = None
    shown: Shown | None = None


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


def generate(
    checkpoint: str,
    caption: str,
    seed: int,
    count: int,
    guidance: float,
    temperature: float,
    upsampler: str,
    candidates: int = Sampling.candidates,
    own: Run | None = None,
) -> Iterator[Frame]:
    """Frames of `count` images with seeds from `seed`: one a scale, some of an upsampler that works
    in steps, then the pictures and all the rest.

    An empty caption draws unconditionally; the checkpoint `YOURS` is the visitor's `own`. The files
    of a frame live until the last one is left.
    """
    try:
        drawing = Drawing(
            checkpoint,
            caption.strip(),
            whole("seed", seed, 0, MAX_SEED),
            whole("count", count, 1, MAX_IMAGES),
            guidance,
            temperature,
            upsampler,
            whole("candidates", candidates, 1, MAX_CANDIDATES),
        )
        settings = drawing.sampling
        load = loader(checkpoint, own)
        pipe = load()
        seeds = tuple(range(drawing.seed, drawing.seed + drawing.count))
        captions = (drawing.caption,) * len(seeds)
        steps = draw(load, captions, seed=seeds, settings=settings, upsampler=upsampler)
        with TemporaryDirectory(prefix="dpwg-") as folder:
            for step in steps:
                if isinstance(step, GenerationResult):
                    yield _finished(Path(folder), drawing, step)
                    continue
                if step.images is not None:
                    size = step.images.shape[1]
                    last = size == pipe.release.tokenizer.config.coarse_size
                    work = (
                        f"Upsampling with {upsampler}" if last else f"Drawing {_square(2 * size)}"
                    )
                    frame = Frame(
                        coarse_title=_coarse_title(size, pipe.release.card),
                        coarse=_coarse(Path(folder), step.images, seeds),
                        image_title=IMAGE_TITLE.format(""),
                        images=None,
                        status=f"{work} …",
                    )
                else:
                    frame = frame._replace(status=f"{upsampler}: {step} …")
                yield frame
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raise gr.Error(str(error)) from error


def opened(query: Mapping[str, str]) -> Drawing | None:
    """What a link asks for, or None; a bad link is an error in words."""
    try:
        return from_query(query)
    except ValueError as error:
        raise gr.Error(str(error)) from error


def swiped(shown: Shown | None, place: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Coarse and upsampled picture number `place` of the last generation, in one size."""
    if shown is None or not 0 <= place < len(shown.image):
        return None
    return enlarged(shown.coarse[place : place + 1])[0], enlarged(shown.image[place : place + 1])[0]


def _finished(folder: Path, drawing: Drawing, result: GenerationResult) -> Frame:
    coarse, full = _square(result.coarse.shape[1]), _square(result.image.shape[1])
    seeds = ("seed " if len(result.seeds) == 1 else "seeds ") + ", ".join(map(str, result.seeds))
    facts = [] if result.captions[0] else ["no caption"]
    facts += [seeds, *(f"{name} {value:.2f} s" for name, value in result.seconds.items())]
    checkpoint = drawing.checkpoint
    if checkpoint != YOURS:  # which no other page can open
        drawn = replace(drawing, candidates=result.candidates)
        facts += [f"[link to this drawing]({to_query(drawn)})"]
    shown = Shown(checkpoint, result.coarse, result.image, f"{checkpoint}, {seeds}")
    return Frame(
        coarse_title=_coarse_title(result.coarse.shape[1], result.card),
        coarse=_coarse(folder, result.coarse, result.seeds),
        image_title=IMAGE_TITLE.format(full),
        images=saved(folder, "image", result.image, _labels(result.seeds)),
        status=" · ".join(facts),
        swipe=swiped(shown, 0),
        authors=f"The {author(result.card)} decided what you see at {coarse}. {_choice(result)}"
        f"The public upsampler {drawing.upsampler} invented all finer detail, up to {full}, from "
        "the coarse picture (and the caption, if it reads captions). ε does not cover what a "
        "public model already knew.",
        files=_write(folder, drawing.checkpoint, result),
        shown=shown,
    )


def _choice(result: GenerationResult) -> str:
    """That candidates were chosen among, where they were."""
    if result.reranker is None:
        return ""
    size = _square(result.partials[0].shape[1])
    each = " for each picture" if len(result.seeds) > 1 else ""
    source = result.reranker.public_input["source"]
    return (
        f"A public reranker ({source}) kept one of {result.candidates} candidates at {size}{each}. "
    )


def _coarse(folder: Path, coarse_BHWC: np.ndarray, seeds: Sequence[int]) -> Pictures:
    name = f"coarse-{coarse_BHWC.shape[1]}"
    return saved(folder, name, enlarged(coarse_BHWC), _labels(seeds))


def _write(folder: Path, checkpoint: str, result: GenerationResult) -> list[str]:
    """The pictures in their own size and result.json."""
    files = []
    for seed, coarse, image in zip(result.seeds, result.coarse, result.image, strict=True):
        for name, picture in ((f"seed-{seed}-coarse.png", coarse), (f"seed-{seed}.png", image)):
            Image.fromarray(picture).save(folder / name)
            files.append(str(folder / name))
    facts = folder / "result.json"
    answer = {"checkpoint": checkpoint, **result.to_json()}
    facts.write_text(json.dumps(answer, indent=2) + "\n")
    return [*files, str(facts)]


def _labels(seeds: Sequence[int]) -> list[str | None]:
    return [f"seed {seed}" for seed in seeds] if len(seeds) > 1 else [None]


def _square(size: int) -> str:
    return f"{size}×{size}"


def _coarse_title(size: int, card: PrivacyCard) -> str:
    return f"### Coarse {_square(size)}\n*{author(card)}*"


def build_generate(
    demo: gr.Blocks, names: Sequence[str], own: gr.State
) -> tuple[gr.State, Chooser]:
    """Add the tab's components. Loads no model. `own` holds the visitor's run.

    Returns what will hold the images shown last, and the choice of the checkpoint.
    """
    shown, usual = gr.State(), families_of(names)[0]
    with gr.Row(elem_classes="prompt"):
        caption = gr.Textbox(
            label="Caption",
            info="Leave empty to draw without a caption.",
            placeholder=placeholder(usual),
            max_lines=4,
            max_length=MAX_CAPTION_CHARACTERS,
            scale=6,
            min_width=300,
            elem_id="caption",
        )
        button = gr.Button("Generate", variant="primary", size="lg", min_width=140)
        lucky = gr.Button("Surprise me", size="lg", min_width=140)
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
    inputs, outputs = [checkpoint, caption, *settings], [*pictures, *extras, shown]
    run: dict[str, Any] = {
        "inputs": [*inputs, own],
        "outputs": outputs,
        "concurrency_limit": 1,
        "concurrency_id": MODEL_QUEUE,
        "scroll_to_output": True,
        "show_progress_on": pictures[1],
    }
    quietly: dict[str, Any] = {"outputs": stop, "queue": False, "api_visibility": "private"}
    # Before what it stops: the page sends off a trigger's handlers in their order here.
    gr.on([button.click, caption.submit, lucky.click], _stop_button, **quietly)
    drawn = gr.on([button.click, caption.submit], generate, api_name="generate", **run)
    surprised = lucky.click(
        surprise, family, outputs=[caption, settings[0]], api_name="surprise"
    ).success(generate, api_visibility="private", **run)
    follow = [checkpoint, examples, caption, *settings[4:]]
    family.input(switched, [family, own], follow, queue=False, api_visibility="private")
    pictures[3].select(_picked, [shown], extras[0], api_visibility="private")
    asked = gr.State(value=False)
    loaded = demo.load(
        _on_load, outputs=[asked, family, examples, *inputs], api_visibility="private"
    )
    loaded.success(_stop_button, asked, **quietly)
    linked = loaded.success(
        _generate_if_asked, **run | {"inputs": [asked, *inputs, own]}, api_visibility="private"
    )
    for drawing in (drawn, surprised, linked):
        for end in (drawing.success, drawing.failure):
            end(lambda: _stop_button(False), **quietly)
    stop.click(
        lambda: ("Stopped.", _stop_button(False)),
        outputs=[pictures[-1], stop],
        cancels=[drawn, surprised, linked],
        queue=False,
        api_visibility="private",
    )
    return shown, chooser


def _stop_button(visible: bool = True) -> gr.Button:
    return gr.Button(visible=visible)


def on_load(query: Mapping[str, str]) -> list[Any]:
    """Whether the page's address asks for images, the family, its examples, and the settings.

    Programs may name any checkpoint; a page has those of the family that is chosen.
    """
    try:
        drawing = opened(query)
    except gr.Error as error:
        gr.Warning(str(error.message))
        drawing = None
    family = family_of(drawing.checkpoint) if drawing else families_of(checkpoint_names())[0]
    fitting = switched(family, checkpoint=drawing.checkpoint if drawing else None)
    follow = [family, fitting.examples, fitting.checkpoint]
    if drawing is None:
        return [False, *follow, *[gr.skip()] * (len(fields(Drawing)) - 1)]
    caption = gr.Textbox(value=drawing.caption, placeholder=placeholder(family))
    candidates = gr.Slider(value=drawing.candidates, visible=reranked(family))
    return [True, *follow, caption, *astuple(drawing)[2:-1], candidates]


def _on_load(request: gr.Request) -> list[Any]:
    return on_load(dict(request.query_params))


def _generate_if_asked(asked: bool, *inputs: Any) -> Iterator[Sequence[Any]]:
    if asked:
        yield from generate(*inputs)
    else:  # to yield nothing would empty the page
        yield [gr.skip()] * len(Frame._fields)


def _picked(shown: Shown | None, event: gr.SelectData) -> tuple[np.ndarray, np.ndarray] | None:
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
    examples.click(
        lambda line: line[0],
        examples,
        caption,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return examples


def _build_settings(
    names: Sequence[str], own: gr.State
) -> tuple[Chooser, Component, list[Component]]:
    """The checkpoint, what it promises, and the rest of `generate`'s inputs after the caption."""
    usual = usual_checkpoint(names)
    with gr.Group():
        families = families_of(names)
        family = gr.Radio(
            family_choices(names),
            value=families[0],
            label="Data set",
            visible=len(families) > 1,
            elem_id="family",
        )
        checkpoint = gr.Radio(names, value=usual, label="Checkpoint")
        promise = gr.Markdown(elem_classes="promise")
    with gr.Group():
        count = gr.Slider(1, MAX_IMAGES, value=1, step=1, label="Images")
        seed = gr.Number(0, step=1, label="Seed")
        dice = gr.Button("⚄ Random seed", size="sm")
    with gr.Accordion("More settings", open=False):
        guidance = gr.Slider(
            0,
            10,
            value=Sampling.guidance,
            step=0.1,
            label="Guidance",
            info="1 turns guidance off. Higher values follow the caption more closely.",
        )
        temperature = gr.Slider(
            0,
            2,
            value=Sampling.temperature,
            step=0.05,
            label="Temperature",
            info="0 always takes the likeliest code; 1 draws as the model does.",
        )
        upsampler = gr.Dropdown(
            list(all_upsamplers()),
            value=suited_upsampler(usual),
            label="Upsampler",
            info=describe_upsampler(suited_upsampler(usual)),
        )
        candidates = gr.Slider(
            1,
            MAX_CANDIDATES,
            value=Sampling.candidates,
            step=1,
            label="Candidates",
            info="How many coarse candidates to draw. A public reranker keeps the one that best "
            "fits the caption. 1 turns it off.",
            visible=reranked(families[0]),
        )
    dice.click(random_seed, outputs=seed, api_name="random_seed")
    upsampler.change(
        lambda name: gr.Dropdown(info=describe_upsampler(name)),
        upsampler,
        upsampler,
        api_visibility="private",
    )
    checkpoint.input(
        refitted,
        [upsampler, checkpoint, own],
        upsampler,
        queue=False,
        api_visibility="private",
    )
    return (
        Chooser(family, checkpoint),
        promise,
        [seed, count, guidance, temperature, upsampler, candidates],
    )


def _build_pictures() -> list[Any]:
    """The first outputs of `generate`, up to the status."""
    shown: list[Any] = []
    with gr.Row():
        for name, title in (
            ("coarse", "### Coarse\n*chosen checkpoint*"),
            ("images", IMAGE_TITLE.format("")),
        ):
            with gr.Column(min_width=280):
                shown.append(gr.Markdown(title, elem_classes="title"))
                shown.append(
                    gr.Gallery(
                        show_label=False,
                        format="png",
                        interactive=False,
                        buttons=["fullscreen", "download"],
                        elem_id=name,
                        elem_classes="pictures",
                    )
                )
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
            authors = gr.Markdown("Appears with the first picture. With several, click one.")
    with gr.Accordion("Files to download: the pictures and result.json", open=False):
        files = gr.Files(show_label=False, interactive=False)
    return [swipe, authors, files]
