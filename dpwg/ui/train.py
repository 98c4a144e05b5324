"""The Train tab: a visitor's own records, a plan, a private run, and what came of it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from matplotlib.figure import Figure

from dpwg.privacy.accounting import epsilon_text
from dpwg.release.folder import load_card
from dpwg.training.recipe import Note
from dpwg.ui import families, limits, parts, plans
from dpwg.ui.compare import Rows, build_rows, compare_pipelines
from dpwg.ui.figures import loss_figure, steps_figure
from dpwg.ui.own import YOURS, is_trained, loader
from dpwg.ui.parts import ON_MODEL, QUIET
from dpwg.ui.plans import Order, clock
from dpwg.ui.runs import Run

FACES, UPLOAD = "a part of faces", "my own pictures"
INTRODUCTION, OWN, PRIVATE = Path(__file__).with_name("train.md").read_text().split("\n---\n")


class Training(NamedTuple):
    """What a run shows at one moment, in the order of its components."""

    status: str = "Make a plan, then start."
    loss: Figure | None = None
    spent: Figure | None = None
    files: list[str] | None = None
    card: str = ""


class Planned(NamedTuple):
    """What a plan shows, in the order of its components: nothing of an earlier run is left."""

    run: Run | None
    told: str
    table: list[list[str]] | None = None
    status: str = Training().status
    loss: None = None
    spent: None = None
    files: None = None
    card: str = ""


def train_tab_is_on() -> bool:
    """Whether DPWG_TRAIN_TAB leaves the tab on: unset, empty or "on"; all else is off."""
    return os.environ.get("DPWG_TRAIN_TAB", "").strip().lower() in ("", "on")


def plan(
    previous: Run | None,
    base: str,
    source: str,
    count: int,
    files: Sequence[str] | None,
    epsilon: float,
    steps: int,
    batch: int | None,
    delta: float | None,
) -> Iterator[Planned]:
    """Take the records, calibrate the noise, and measure how long it will take.

    The run that the page had before is removed; only an upload that is used again is kept.
    """
    if previous:
        previous.stop()
    yield Planned(None, "Checking every record …")
    run, kept, wish = None, False, (base, epsilon, steps, batch, delta)
    try:
        if source == FACES:
            order = plans.ordered(count, *wish)
            run = Run()
            run.faces = order.plan.records
        else:
            if not files:
                raise ValueError("Choose a zip, or pictures and their metadata, first.")
            run = Run()
            records = run.take_upload(files, previous)
            kept = True
            order = plans.ordered(records, *wish)
        spent = plans.spent_after(order.plan, order.plan.steps)
        told, rows = plans.promise(order.plan, spent), plans.table(order.plan, spent)
        yield Planned(run, f"{told} Measuring the time …", rows)
        measured = run.measure(order)
        seconds = plans.seconds_of(order.plan, measured)
        if seconds > 60 * limits.MAX_TRAIN_MINUTES:
            raise ValueError(
                f"This plan takes {clock(seconds)}, more than the limit of "
                f"{limits.MAX_TRAIN_MINUTES} minutes; lower the steps or the batch."
            )
        run.order, kept = order, True
        rows = [*rows, ["time, as measured", clock(seconds)]]
        yield Planned(run, f"{told}\n\n{plans.expectation(order.plan, measured, base)}", rows)
    except (TypeError, ValueError, OSError) as error:
        why = parts.worded(error)
        yield Planned(run if kept else None, f"**There is no plan.** {why}")
        raise gr.Error(why) from error
    finally:
        if previous:
            previous.remove()
        if run and not kept:
            run.remove()


def train(run: Run | None) -> Iterator[Training]:
    """Start, or go on with, the page's run: a frame a step, then the release."""
    if run is None or run.order is None:
        raise gr.Error("Make a plan first.")
    if run.zipped:
        raise gr.Error("This run is done. Make a new plan for another one.")
    order, started = run.order, time.monotonic()
    frame = Training("Starting …")
    yield frame
    try:
        for report in run.train():
            if isinstance(report, Note):
                gr.Warning(report.told)
            elif report.stage == "training":
                frame = _frame(run, order, f"{clock(time.monotonic() - started)} since the start")
            else:
                status = f"Encoding {report.stage}: {report.step:,} of {report.steps:,} …"
                frame = frame._replace(status=status)
            yield frame
    except ValueError as error:
        yield _frame(run, order, str(error))
        raise gr.Error(str(error)) from error
    if run.zipped:
        card = load_card(run.release)
        told = "done. Draw with it below and in the tabs Generate and Compare, or take it with you."
        yield _frame(run, order, told)._replace(files=[str(run.zipped)], card=card.to_markdown())
    else:
        yield _frame(run, order, "stopped. Start goes on from here.")


def stop(run: Run | None) -> None:
    """Stop the page's run: the step under way is dropped, the state of the last one is kept."""
    if run is None or not run.running:
        raise gr.Error("Nothing of yours is running now.")
    run.stop()


def draw(run: Run | None, caption: str, seed: int) -> Iterator[Rows]:
    """One caption and seed under the public base and under what the page's run made of it."""
    if run is None or run.order is None or not is_trained(run):
        raise gr.Error("There is no result yet: make a plan, and let it run to its last step.")
    with parts.in_words():
        pipes = [(title, loader(title, run)) for title in (run.order.base, YOURS)]
        yield from compare_pipelines(
            pipes, caption, seed, families.suited_upsampler(run.order.base)
        )


def _frame(run: Run, order: Order, told: str) -> Training:
    """The page after the last report of a run."""
    if not run.reports:
        return Training(f"**0 of {order.plan.steps} steps**, {told}")
    last = run.reports[-1]
    steps = [report.step for report in run.reports]
    spent = [math.nan if report.epsilon is None else report.epsilon for report in run.reports]
    return Training(
        f"**{last.step} of {last.steps} steps**, ε = {epsilon_text(spent[-1])} of "
        f"{order.target:g} spent, private loss {last.loss:.3f}, {told}",
        loss_figure(steps, [report.loss for report in run.reports]),
        steps_figure([0, *steps], [0.0, *spent], order.plan.delta),
    )


def build_train(names: Sequence[str], run: gr.State) -> list[Any]:
    """Add the tab's components. Reads no record and starts nothing. `run` will hold the visitor's.

    Returns the events after which there may be a model of the visitor's, or none any more.
    """
    gr.Markdown(INTRODUCTION)
    if not (bases := plans.public_names(names)):
        gr.Markdown("There is no public checkpoint to start from; see `python -m dpwg pretrain`.")
        return []
    with gr.Row(elem_classes=["page", "form"]):
        with gr.Column(elem_classes="settings"):
            settings = _build_settings(bases)
            button = gr.Button("Make a plan", variant="primary", elem_id="plan")
        with gr.Column(elem_classes="results"):
            told = gr.Markdown("Choose records and an epsilon, and make a plan.", elem_id="planned")
            figures = parts.table("The plan", ["figure", "value"], column_widths=["60%", "40%"])
            with gr.Row():
                start = gr.Button("Start, or go on", variant="primary", min_width=180)
                end = gr.Button("Stop", min_width=140)
            shown = _build_progress()
        with gr.Column(elem_classes="extras"):
            _build_drawing(run, settings[0])
            with gr.Accordion("What a run may take here", open=False):
                gr.Markdown(limits.described_training())
    plan_line: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "plan"}
    train_line: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "train"}
    outputs = [run, told, figures, *shown]
    made = button.click(plan, [run, *settings], outputs, show_progress_on=told, **plan_line)
    trained = start.click(train, run, shown, show_progress_on=shown[0], **train_line)
    end.click(stop, run, concurrency_limit=None, show_progress="hidden")
    return [made, trained]


def _build_settings(bases: Sequence[str]) -> list[Any]:
    """The inputs of `plan` after the run."""
    usual, several = families.usual_checkpoint(bases), len(bases) > 1
    base = gr.Radio(bases, value=usual, label="Start from", visible=several)
    with gr.Group():
        source = gr.Radio([FACES, UPLOAD], value=FACES, label="Records")
        info = "Synthetic: they are nobody's faces."
        count = parts.slider("How many faces", 100, limits.MAX_TRAIN_RECORDS, 1000, 100, info=info)
        with gr.Column(visible=False) as own:
            label = f"Zip, or pictures and metadata, up to {limits.TRAIN_UPLOAD_MEGABYTES} MB"
            files = gr.File(label=label, file_count="multiple")
            gr.Markdown(OWN, elem_classes="promise")
    with gr.Group():
        numbers = [
            gr.Number(value, label=label, info=info, step=1)
            for label, value, info in (
                ("Epsilon", 10, "Less is more private. Every run here has a bound."),
                ("Steps", 24, None),
                ("Expected batch size", 0, "0: a quarter of the records."),
                ("Delta", 0, "Below 1 / records. 0: a tenth of that, or 1e-5."),
            )
        ]
    source.change(
        lambda source: (gr.Slider(visible=source == FACES), gr.Column(visible=source == UPLOAD)),
        source,
        [count, own],
        **QUIET,
    )
    return [base, source, count, files, *numbers]


def _build_progress() -> list[Any]:
    """The outputs of `train`."""
    status = gr.Markdown(Training().status, elem_classes="answer", elem_id="training")
    gr.Markdown(PRIVATE, elem_classes="promise")
    figures = parts.plots("PRIVATE: the loss", "Epsilon spent")
    label = "The release, zipped: model and privacy card"
    files = gr.Files(label=label, interactive=False, height=90)
    with gr.Accordion("Its privacy card", open=False):
        card = gr.Markdown(elem_classes="card")
    return [status, *figures, files, card]


def _build_drawing(run: gr.State, base: gr.Radio) -> None:
    gr.Markdown("### Draw with your model\nBeside the public model that it started from.")
    with gr.Row(elem_classes="prompt"):
        caption = parts.caption_box(
            "trained-caption", families.first_caption(families.family_of(base.value))
        )
        seed = gr.Number(0, step=1, label="Seed", min_width=100)
        button = parts.big_button("Draw", "primary")
    base.input(
        lambda caption, base: families.carried(
            caption, families.family_of(base), families.first_caption
        ),
        [caption, base],
        caption,
        **QUIET,
    )
    rows = build_rows("trained", 2)
    asked: dict[str, Any] = {"show_progress_on": rows[2], **ON_MODEL}
    gr.on([button.click, caption.submit], draw, [run, caption, seed], rows, **asked)
