"""The Compare tab: one caption under every checkpoint, or several captions under one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import gradio as gr
from gradio.components import Component
from matplotlib.figure import Figure

from dpwg.data.records import MAX_CAPTION_CHARACTERS
from dpwg.method.pipeline import MAX_SEED, GenerationResult
from dpwg.ui.families import (
    carried,
    families_of,
    family_choices,
    family_of,
    first_caption,
    siblings,
    suited_upsampler,
    usual_checkpoint,
    variations,
)
from dpwg.ui.figures import quality_figure
from dpwg.ui.limits import MAX_CAPTIONS, whole
from dpwg.ui.own import YOURS, Chooser, choices, is_trained, loader, refitted
from dpwg.ui.pictures import Pictures, enlarged, saved
from dpwg.ui.pipelines import MODEL_QUEUE, draw
from dpwg.ui.promises import label
from dpwg.ui.results import measures
from dpwg.ui.rows import ONE_CANDIDATE, Rows, build_rows, compare_pipelines
from dpwg.ui.runs import Run
from dpwg.ui.shown import random_seed
from dpwg.upsampling.upsamplers import all_upsamplers


def compare_checkpoints(
    family: str, caption: str, seed: int, upsampler: str, own: Run | None = None
) -> Iterator[Rows]:
    """One caption and seed under every checkpoint of a data set, each shown as it grows.

    The model that the visitor trained, if there is one, is the last.
    """
    try:
        seed = whole("seed", seed, 0, MAX_SEED)
        if not (names := siblings(family)):
            raise ValueError(f"There is no checkpoint for {family!r:.80}; choose another data set.")
        titles = [*names, YOURS] if is_trained(own) else names
        pipes = [(title, loader(title, own)) for title in titles]
        yield from compare_pipelines(pipes, caption, seed, upsampler)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raise gr.Error(str(error)) from error


def compare_captions(
    checkpoint: str, text: str, seed: int, upsampler: str, own: Run | None = None
) -> Iterator[Rows]:
    """Every line of `text` as a caption under one checkpoint, all from one seed."""
    try:
        seed = whole("seed", seed, 0, MAX_SEED)
        captions = tuple(line.strip() for line in text.splitlines() if line.strip())
        if not 1 <= len(captions) <= MAX_CAPTIONS:
            raise ValueError(
                f"Expected 1 to {MAX_CAPTIONS} captions, one a line, found {len(captions)}."
            )
        load = loader(checkpoint, own)
        pipe = load()
        labels = [f"line {number}" for number in range(1, len(captions) + 1)]
        asked = {"seed": (seed,) * len(captions), "settings": ONE_CANDIDATE, "upsampler": upsampler}
        steps = draw(load, captions, **asked)
        coarse: Pictures = []
        with TemporaryDirectory(prefix="dpwg-") as name:
            folder = Path(name)
            for step in steps:
                if isinstance(step, GenerationResult):
                    images = saved(folder, "image", step.image, labels)
                    facts = f"seed {seed} for all · drawn in {step.seconds['total']:.2f} s"
                    yield Rows(coarse, images, f"{label(pipe.release.card)} · {facts}")
                elif step.images is None:
                    yield Rows(coarse, [], f"{upsampler}: {step} …")
                else:
                    size = step.images.shape[1]
                    coarse = saved(folder, f"coarse-{size}", enlarged(step.images), labels)
                    yield Rows(coarse, [], f"{size}×{size} is drawn …")
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raise gr.Error(str(error)) from error


def mark(picked: str | None, title: str | None = None) -> tuple[Figure | None, str]:
    """A measured curve of a checkpoint's family with it marked, and its value in words with the
    source. `title` is that of a measure, the first by default.
    """
    found = {measure.title: measure for measure in measures()}
    if not found:
        return None, "This copy has no result file. `python -m dpwg evaluate` writes one."
    measure = found.get(title or "") or next(iter(found.values()))
    points = [point for point in measure.points if family_of(point.name) == family_of(picked or "")]
    if not points:
        return None, f"No measurement of {picked} yet."
    measure = measure._replace(points=tuple(points))
    values = {point.name: point for point in points}
    if picked not in values:
        return quality_figure(measure, None), f"No measurement of {picked} yet. {measure.source}"
    told = f"**{picked}**: {values[picked].value:.3f} {measure.unit}."
    return quality_figure(measure, picked), f"{told} {measure.source}"


class Switched(NamedTuple):
    """What follows the choice of a family, in the order of its components."""

    caption: str
    upsampler: str
    picked: gr.Radio
    coarse: gr.Gallery
    images: gr.Gallery
    captions: str
    checkpoint: gr.Radio
    upsampler_of_captions: str


def switched(family: str, caption: str, captions: str, own: Run | None = None) -> Switched:
    """The checkpoints of a family, and captions and an upsampler that suit; what somebody typed
    stays.
    """
    names = siblings(family)
    usual = usual_checkpoint(names)
    upsampler, columns = suited_upsampler(usual), len(names) + is_trained(own)
    return Switched(
        carried(caption, family, first_caption),
        upsampler,
        gr.Radio(choices=names, value=usual),
        gr.Gallery(columns=columns),
        gr.Gallery(columns=columns),
        carried(captions, family, variations),
        gr.Radio(choices=choices(own, names), value=usual),
        upsampler,
    )


def build_compare(
    demo: gr.Blocks, names: Sequence[str], own: gr.State
) -> tuple[Chooser, list[gr.Gallery]]:
    """Add the tab's components. Loads no model. `own` holds the visitor's run.

    Returns the choice of a checkpoint to draw with, and the rows of one picture a checkpoint.
    """
    gr.Markdown(
        "What does privacy cost in quality? What does the caption change? All pictures share one "
        "seed and have one candidate each, so any difference comes from the checkpoint or the "
        "caption."
    )
    families = families_of(names)
    family = gr.Radio(
        family_choices(names),
        value=families[0],
        label="Data set",
        visible=len(families) > 1,
        elem_id="compared-family",
    )
    with gr.Tabs():
        with gr.Tab("Checkpoints"):
            of_checkpoints = _build_checkpoints(names, family, own)
        with gr.Tab("Captions"):
            of_captions = _build_captions(names, own)
    caption, _, _, *rows = of_checkpoints
    captions, checkpoint, _ = of_captions
    # Programs may name any checkpoint; a page has those of the family that is chosen.
    gr.on(
        [demo.load, family.input],
        switched,
        [family, caption, captions, own],
        [*of_checkpoints, *of_captions],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return Chooser(family, checkpoint), rows


def _build_checkpoints(names: Sequence[str], family: gr.Radio, own: gr.State) -> list[Any]:
    """The first components that follow the family, in the order of `Switched`."""
    usual = usual_checkpoint(names)
    with gr.Row(elem_classes="prompt"):
        caption = gr.Textbox(
            first_caption(family_of(usual)),
            label="Caption",
            info="Leave empty to draw without a caption.",
            max_lines=4,
            max_length=MAX_CAPTION_CHARACTERS,
            scale=6,
            min_width=300,
            elem_id="compared-caption",
        )
        button = gr.Button("Compare", variant="primary", size="lg", min_width=140)
    seed, upsampler = _build_settings(suited_upsampler(usual))
    rows = build_rows("checkpoints", len(siblings(family_of(usual), names)))
    with gr.Row():
        with gr.Column(min_width=280):
            gr.Markdown("### What was measured", elem_classes="title")
            titles = [measure.title for measure in measures()]
            title = gr.Radio(
                titles,
                value=titles[0] if titles else None,
                label="Measure",
                visible=len(titles) > 1,
            )
            picked = gr.Radio(names, value=usual, label="Mark a checkpoint")
            told = gr.Markdown(elem_classes="status")
        with gr.Column(scale=2, min_width=300):
            curve = gr.Plot(label="Quality against epsilon", format="png", elem_classes="framed")
    gr.on(
        [button.click, caption.submit],
        compare_checkpoints,
        [family, caption, seed, upsampler, own],
        rows,
        api_name="compare_checkpoints",
        concurrency_limit=1,
        concurrency_id=MODEL_QUEUE,
        show_progress_on=rows[2],
    )
    gr.on(fn=mark, inputs=[picked, title], outputs=[curve, told], api_name="mark")
    for row in rows[:2]:
        row.select(_chosen, [family, picked], picked, api_visibility="private")
    return [caption, upsampler, picked, *rows[:2]]


def _build_captions(names: Sequence[str], own: gr.State) -> list[Any]:
    """The last components that follow the family, in the order of `Switched`."""
    usual = usual_checkpoint(names)
    with gr.Row(elem_classes="prompt"):
        text = gr.Textbox(
            variations(family_of(usual)),
            label="Captions",
            info=f"One a line, at most {MAX_CAPTIONS}.",
            lines=4,
            max_lines=8,
            max_length=MAX_CAPTIONS * (MAX_CAPTION_CHARACTERS + 1),
            scale=6,
            min_width=300,
            elem_id="captions",
        )
        button = gr.Button("Draw all", variant="primary", size="lg", min_width=140)
    checkpoint = gr.Radio(names, value=usual, label="Checkpoint")
    seed, upsampler = _build_settings(suited_upsampler(usual))
    checkpoint.input(
        refitted, [upsampler, checkpoint, own], upsampler, queue=False, api_visibility="private"
    )
    rows = build_rows("captions", MAX_CAPTIONS)
    button.click(
        compare_captions,
        [checkpoint, text, seed, upsampler, own],
        rows,
        api_name="compare_captions",
        concurrency_limit=1,
        concurrency_id=MODEL_QUEUE,
        show_progress_on=rows[2],
    )
    return [text, checkpoint, upsampler]


def _build_settings(usual: str) -> tuple[Component, Component]:
    """A seed and an upsampler, `usual` at first."""
    with gr.Row():
        with gr.Column(min_width=160), gr.Group():
            seed = gr.Number(0, step=1, label="Seed")
            dice = gr.Button("⚄ Random seed", size="sm")
        with gr.Column(min_width=160):
            upsampler = gr.Dropdown(list(all_upsamplers()), value=usual, label="Upsampler")
    dice.click(random_seed, outputs=seed, api_visibility="private")
    return seed, upsampler


def _chosen(family: str, picked: str | None, event: gr.SelectData) -> str | None:
    """The checkpoint of a picture that was clicked on; the visitor's own was not measured."""
    names = siblings(family)
    return names[int(event.index)] if int(event.index) < len(names) else picked
