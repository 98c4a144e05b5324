"""The Compare tab: one caption under every checkpoint, or several captions under one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import gradio as gr
from gradio.components import Component
from matplotlib.figure import Figure

from dpwg.data.records import MAX_CAPTION_CHARACTERS
from dpwg.method.pipeline import MAX_SEED
from dpwg.method.sampling import Sampling
from dpwg.ui import families, parts
from dpwg.ui.figures import quality_figure
from dpwg.ui.limits import MAX_CAPTIONS, whole
from dpwg.ui.own import YOURS, Chooser, card_of, choices, is_trained, label, loader, refitted
from dpwg.ui.parts import in_words
from dpwg.ui.pipelines import Load, Pictures, draw, watch
from dpwg.ui.results import measures
from dpwg.ui.runs import Run

INTRODUCTION = """What does privacy cost in quality? What does the caption change? All pictures
start from the same seed, with one candidate each, so any difference comes from the checkpoint or
from the caption."""
ONE_CANDIDATE = Sampling(candidates=1)
"""A choice among candidates could fall differently in each picture, and hide what is compared."""


class Rows(NamedTuple):
    """What a comparison shows at one moment, in the order of its components."""

    coarse: Pictures
    images: Pictures
    status: str


def compare_pipelines(
    pipes: Sequence[tuple[str, Load]], caption: str, seed: int, upsampler: str
) -> Iterator[Rows]:
    """One caption and seed under several pipelines, each loaded when it is its turn.

    One that cannot be loaded is left out, and told; ValueError where none can.
    """
    caption, seed = caption.strip(), whole("seed", seed, 0, MAX_SEED)
    asked: dict[str, Any] = {"seed": seed, "settings": ONE_CANDIDATE, "upsampler": upsampler}
    rows, seconds, damaged = Rows([], [], ""), 0.0, dict[str, str]()
    with TemporaryDirectory(prefix="dpwg-") as folder:
        for place, (title, load) in enumerate(pipes, start=1):
            status = f"{title} … ({place} of {len(pipes)})"
            yield rows._replace(status=status)
            try:
                card = load().release.card
            except (ValueError, OSError) as error:
                damaged[title] = parts.worded(error)
                continue
            name = [("yours, " if title == YOURS else "") + label(card)]
            before = rows
            steps = draw(load, (caption,), **asked)
            for moment in watch(steps, Path(folder), name, upsampler, f"{place}-"):
                coarse, images = before.coarse + moment.coarse, before.images + moment.images
                rows = Rows(coarse, images, f"{status} {moment.doing}")
                seconds += moment.result.seconds["total"] if moment.result else 0
                yield rows
        if not rows.images:
            raise ValueError(" ".join(damaged.values()))
        facts = [] if caption else ["no caption"]
        facts += [f"seed {seed} for all", f"drawn in {seconds:.2f} s"]
        facts += [f"{', '.join(damaged)} left out, because it is damaged"] if damaged else []
        yield rows._replace(status=" · ".join(facts))


def compare_checkpoints(
    family: str, caption: str, seed: int, upsampler: str, own: Run | None = None
) -> Iterator[Rows]:
    """One caption and seed under every checkpoint of a data set, each shown as it grows.

    The model that the visitor trained, if there is one, is the last.
    """
    with in_words():
        if not (names := families.siblings(family)):
            raise ValueError(f"There is no checkpoint for {family!r:.80}; choose another data set.")
        titles = [*names, YOURS] if is_trained(own) else names
        pipes = [(title, loader(title, own)) for title in titles]
        yield from compare_pipelines(pipes, caption, seed, upsampler)


def compare_captions(
    checkpoint: str, text: str, seed: int, upsampler: str, own: Run | None = None
) -> Iterator[Rows]:
    """Every line of `text` as a caption under one checkpoint, all from one seed."""
    with in_words(), TemporaryDirectory(prefix="dpwg-") as folder:
        seed = whole("seed", seed, 0, MAX_SEED)
        captions = tuple(line.strip() for line in text.splitlines() if line.strip())
        if not 1 <= len(captions) <= MAX_CAPTIONS:
            raise ValueError(
                f"Write 1 to {MAX_CAPTIONS} captions, one a line; found {len(captions)}."
            )
        load = loader(checkpoint, own)
        facts = [label(load().release.card), f"seed {seed} for all"]
        labels = [f"line {number}" for number in range(1, len(captions) + 1)]
        seeds = (seed,) * len(captions)
        steps = draw(load, captions, seed=seeds, settings=ONE_CANDIDATE, upsampler=upsampler)
        for moment in watch(steps, Path(folder), labels, upsampler):
            if moment.result:
                facts += [f"drawn in {moment.result.seconds['total']:.2f} s"]
            yield Rows(moment.coarse, moment.images, moment.doing or " · ".join(facts))


def mark(picked: str | None, title: str | None = None) -> tuple[Figure | None, str]:
    """A measured curve of a checkpoint's family with it marked, and its value in words with the
    source. `title` is that of a measure, the first by default.
    """
    found = {measure.title: measure for measure in measures()}
    if not found:
        return None, "This copy has no result file. `python -m dpwg evaluate` writes one."
    measure = found.get(title or "") or next(iter(found.values()))
    family = families.family_of(picked or "")
    points = {p.name: p for p in measure.points if families.family_of(p.name) == family}
    told = f"{picked} has not been measured yet."
    if not points:
        return None, told
    if picked in points:
        told = f"**{picked}**: {points[picked].value:.3f} {measure.unit}."
    measure = measure._replace(points=tuple(points.values()))
    return quality_figure(measure, picked), f"{told} {measure.source}"


def switched(family: str, caption: str, captions: str, own: Run | None = None) -> list[Any]:
    """What follows the choice of a family: caption, upsampler, the checkpoint to mark and both rows
    of the one mode; captions, checkpoint and upsampler of the other. What somebody typed stays.
    """
    names = families.siblings(family)
    usual = families.usual_checkpoint(names)
    upsampler, columns = families.suited_upsampler(usual), len(names) + is_trained(own)
    return [
        families.carried(caption, family, families.first_caption),
        upsampler,
        gr.Radio(choices=names, value=usual),
        *(gr.Gallery(columns=columns) for _ in range(2)),
        families.carried(captions, family, families.variations),
        gr.Radio(choices=choices(own, names), value=usual),
        upsampler,
    ]


def build_compare(
    demo: gr.Blocks, names: Sequence[str], own: gr.State
) -> tuple[Chooser, list[gr.Gallery]]:
    """Add the tab's components. Loads no model. `own` holds the visitor's run.

    Returns the choice of a checkpoint to draw with, and the rows of one picture a checkpoint.
    """
    gr.Markdown(INTRODUCTION)
    family = parts.family_choice(names, "compared-family")
    with gr.Tabs():
        with gr.Tab("Checkpoints"):
            of_checkpoints = _build_checkpoints(names, family, own)
        with gr.Tab("Captions"):
            of_captions = _build_captions(names, own)
    caption, _, _, *rows = of_checkpoints
    captions, checkpoint, _ = of_captions
    # Programs may name any checkpoint; a page has those of the family that is chosen.
    followed, follow = [family, caption, captions, own], [*of_checkpoints, *of_captions]
    gr.on([demo.load, family.input], switched, followed, follow, **parts.QUIET)
    return (family, checkpoint), rows


def build_rows(name: str, columns: int) -> list[Any]:
    """A row of coarse pictures, one of upsampled ones, and the status."""
    titles = {"coarse": "Coarse, by the checkpoint", "images": "Upsampled, by the public model"}
    rows = [parts.row_of_pictures(f"{name}-{row}", titles[row], columns) for row in titles]
    status = gr.Markdown("The pictures appear one after the other.", elem_classes="status")
    return [*rows, status]


def _build_checkpoints(names: Sequence[str], family: gr.Radio, own: gr.State) -> list[Any]:
    """The first components that follow the family, in the order of `switched`."""
    usual = families.usual_checkpoint(names)
    first = families.family_of(usual)
    with gr.Row(elem_classes="prompt"):
        caption = parts.caption_box("compared-caption", families.first_caption(first))
        button = parts.big_button("Compare", "primary")
    seed, upsampler = _build_settings(usual)
    rows = build_rows("checkpoints", len(families.siblings(first, names)))
    with gr.Row():
        with gr.Column(min_width=280):
            gr.Markdown("### What was measured", elem_classes="title")
            titles = [measure.title for measure in measures()]
            value, several = next(iter(titles), None), len(titles) > 1
            title = gr.Radio(titles, value=value, label="Measure", visible=several)
            picked = gr.Radio(names, value=usual, label="Mark a checkpoint")
            told = gr.Markdown(elem_classes="status")
        with gr.Column(scale=2, min_width=300):
            curve = parts.plot("Quality against epsilon")
    gr.on(
        [button.click, caption.submit],
        compare_checkpoints,
        [family, caption, seed, upsampler, own],
        rows,
        show_progress_on=rows[2],
        **parts.ON_MODEL,
    )
    gr.on(fn=mark, inputs=[picked, title], outputs=[curve, told])
    for row in rows[:2]:
        row.select(_chosen, [family, picked], picked, api_visibility="private")
    return [caption, upsampler, picked, *rows[:2]]


def _build_captions(names: Sequence[str], own: gr.State) -> list[Any]:
    """The last components that follow the family, in the order of `switched`."""
    usual = families.usual_checkpoint(names)
    with gr.Row(elem_classes="prompt"):
        text = gr.Textbox(
            families.variations(families.family_of(usual)),
            label="Captions",
            info=f"One a line, at most {MAX_CAPTIONS}.",
            lines=4,
            max_lines=8,
            max_length=MAX_CAPTIONS * (MAX_CAPTION_CHARACTERS + 1),
            scale=6,
            min_width=300,
            elem_id="captions",
        )
        button = parts.big_button("Draw all", "primary")
    checkpoint = gr.Radio(names, value=usual, label="Checkpoint")
    seed, upsampler = _build_settings(usual)
    checkpoint.input(refitted, [upsampler, checkpoint, own], upsampler, **parts.QUIET)
    rows = build_rows("captions", MAX_CAPTIONS)
    inputs, shown = [checkpoint, text, seed, upsampler, own], rows[2]
    button.click(compare_captions, inputs, rows, show_progress_on=shown, **parts.ON_MODEL)
    return [text, checkpoint, upsampler]


def _build_settings(usual: str) -> tuple[Component, Component]:
    """A seed and an upsampler, at first that of the usual checkpoint."""
    with gr.Row():
        with gr.Column(min_width=160), gr.Group():
            seed = parts.seed_field()
        with gr.Column(min_width=160):
            upsampler = parts.upsampler_choice(families.suited_upsampler(usual))
    return seed, upsampler


def _chosen(family: str, picked: str | None, event: gr.SelectData) -> str | None:
    """The checkpoint of a picture that was clicked on; the visitor's own was not measured."""
    for name in families.siblings(family):
        with suppress(ValueError, OSError):
            if label(card_of(name)) == event.value["caption"]:
                return name
    return picked
