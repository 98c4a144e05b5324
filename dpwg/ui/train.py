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

from dpwg.data.records import MAX_CAPTION_CHARACTERS
from dpwg.method.pipeline import MAX_SEED
from dpwg.privacy.accounting import epsilon_text
from dpwg.release.folder import load_card
from dpwg.ui.families import carried, family_of, first_caption, suited_upsampler, usual_checkpoint
from dpwg.ui.figures import loss_figure, steps_figure
from dpwg.ui.limits import (
    MAX_TRAIN_MINUTES,
    MAX_TRAIN_RECORDS,
    MIN_TRAIN_RECORDS,
    TRAIN_UPLOAD_MEGABYTES,
    described_training,
    whole,
)
from dpwg.ui.own import YOURS, is_trained, loader
from dpwg.ui.pipelines import MODEL_QUEUE
from dpwg.ui.plans import (
    checked_wish,
    clock,
    expectation,
    promise,
    public_names,
    seconds_of,
    spent_after,
    table,
)
from dpwg.ui.rows import Rows, build_rows, compare_pipelines
from dpwg.ui.runs import Order, Run

FACES, UPLOAD = "a part of faces", "my own pictures"
INTRODUCTION = """Fine-tune the public model on pictures of your own, or on a small part of
`faces`, with DP-SGD. What is released afterwards is the model alone; epsilon bounds what it can
tell about any one picture with its captions."""
OWN = """A zip, or the files themselves: pictures (PNG, JPEG, WebP) and a `metadata.jsonl` or
`metadata.csv` with a `file_name` and a `text` for each. Every one is checked and decoded before
anything is trained. What was checked is kept on this server, for this page of yours alone, until
the run is done, you make another plan, or its time is over; the files as you sent them are removed
within two hours. Who runs the server could read them."""
PRIVATE = """**Private: the loss.** It is computed from the sensitive records without noise, and
epsilon does not cover it: for the owner of the data only. To stop, or to choose other settings,
*because of it* is a choice that no ledger counts. So a stopped run has no result; it can go on from
its last step. And every run on the same pictures spends an epsilon of its own: they add up."""


class Planned(NamedTuple):
    """What a plan shows, in the order of its components; the last four are of an earlier run."""

    run: Run | None
    told: str
    table: list[list[str]]
    status: str = "Make a plan, then start."
    loss: Figure | None = None
    spent: Figure | None = None
    files: list[str] | None = None
    card: str = ""


class Training(NamedTuple):
    """What a run shows at one moment, in the order of its components."""

    status: str
    loss: Figure | None
    spent: Figure | None
    files: list[str] | None
    card: str


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

    The run that the page had before, and all that was uploaded for it, is removed.
    """
    if previous:
        previous.remove()
    yield Planned(None, "Checking …", [])
    run = None
    try:
        wish = checked_wish(base, epsilon, steps, batch, delta)
        if source == FACES:
            count = whole("records", count, MIN_TRAIN_RECORDS, MAX_TRAIN_RECORDS)
            wish.order(count)
        elif source != UPLOAD:
            raise ValueError(f"Expected source={source!r:.40} in {[FACES, UPLOAD]}.")
        elif not files:
            raise ValueError("Choose a zip, or pictures and their metadata, first.")
        run = Run()
        if source == FACES:
            yield Planned(None, f"Drawing {count:,} faces …", [])
            records = run.take_faces(count)
        else:
            yield Planned(None, "Checking every picture …", [])
            records = run.take_upload([Path(file) for file in files or ()])
        order = wish.order(records)
        spent = spent_after(order.plan, order.plan.steps)
        told, rows = promise(order.plan, spent), table(order.plan, spent)
        yield Planned(None, f"{told} Measuring the time …", rows)
        measured = run.measure(order)
        seconds = seconds_of(order.plan, measured)
        if seconds > 60 * MAX_TRAIN_MINUTES:
            raise ValueError(
                f"Expected at most {MAX_TRAIN_MINUTES} minutes, this plan takes {clock(seconds)}; "
                "lower the steps or the batch."
            )
        run.order = order
        yield Planned(
            run,
            f"{told}\n\n{expectation(order.plan, measured, base)}",
            [*rows, ["time, as measured", clock(seconds)]],
        )
        run = None  # the page has it
    except (TypeError, ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        yield Planned(None, f"**There is no plan.** {error}", [])
        raise gr.Error(str(error)) from error
    finally:
        if run:
            run.remove()


def train(run: Run | None) -> Iterator[Training]:
    """Start, or go on with, the page's run: a frame a step, then the release."""
    if run is None or run.order is None:
        raise gr.Error("Make a plan first.")
    if run.zipped:
        raise gr.Error("This run is done. Make a new plan for another one.")
    order, started = run.order, time.monotonic()
    frame = Training("Starting …", None, None, None, "")
    yield frame
    try:
        for report in run.train():
            if report["stage"] == "training":
                since = clock(time.monotonic() - started)
                frame = _frame(run, order, f"{since} since the start")
            elif report["stage"] == "note":
                gr.Warning(report["told"])
            elif report["stage"] != "release":
                done, total = report["done"], report["total"]
                frame = frame._replace(
                    status=f"Encoding {report['stage']}: {done:,} of {total:,} …"
                )
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
    try:
        seed = whole("seed", seed, 0, MAX_SEED)
        pipes = [(title, loader(title, run)) for title in (run.order.base, YOURS)]
        yield from compare_pipelines(pipes, caption, seed, suited_upsampler(run.order.base))
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raise gr.Error(str(error)) from error


def _frame(run: Run, order: Order, told: str) -> Training:
    """The page after the last report of a run."""
    if not run.reports:
        return Training(f"**0 of {order.plan.steps} steps**, {told}", None, None, None, "")
    last = run.reports[-1]
    steps = [report["step"] for report in run.reports]
    losses = [math.nan if report["loss"] is None else report["loss"] for report in run.reports]
    spent = [report["epsilon"] for report in run.reports]
    return Training(
        f"**{last['step']} of {last['steps']} steps**, ε = {epsilon_text(last['epsilon'])} of "
        f"{order.target:g} spent, private loss {losses[-1]:.3f}, {told}",
        loss_figure(steps, losses),
        steps_figure([0, *steps], [0.0, *spent], order.plan.delta),
        None,
        "",
    )


def build_train(names: Sequence[str], run: gr.State) -> list[Any]:
    """Add the tab's components. Reads no record and starts nothing. `run` will hold the visitor's.

    Returns the events after which there may be a model of the visitor's, or none any more.
    """
    gr.Markdown(INTRODUCTION)
    if not (bases := public_names(names)):
        gr.Markdown("There is no public checkpoint to start from; see `python -m dpwg pretrain`.")
        return []
    with gr.Row(elem_classes=["page", "form"]):
        with gr.Column(elem_classes="settings"):
            settings = _build_settings(bases)
            button = gr.Button("Make a plan", variant="primary", elem_id="plan")
        with gr.Column(elem_classes="results"):
            planned = [
                gr.Markdown("Choose records and an epsilon, and make a plan.", elem_id="planned"),
                gr.Dataframe(
                    headers=["figure", "value"],
                    label="The plan",
                    column_widths=["60%", "40%"],
                    interactive=False,
                ),
            ]
            with gr.Row():
                start = gr.Button("Start, or go on", variant="primary", min_width=180)
                end = gr.Button("Stop", min_width=140)
            shown = _build_progress()
        with gr.Column(elem_classes="extras"):
            _build_drawing(run, settings[0])
            with gr.Accordion("What a run may take here", open=False):
                gr.Markdown(described_training())
    made = button.click(
        plan,
        [run, *settings],
        [run, *planned, *shown],
        api_name="plan",
        concurrency_limit=1,
        concurrency_id="plan",
        show_progress_on=planned[0],
    )
    trained = start.click(
        train,
        run,
        shown,
        api_name="train",
        concurrency_limit=1,
        concurrency_id="train",
        show_progress_on=shown[0],
    )
    end.click(stop, run, api_name="stop", concurrency_limit=None, show_progress="hidden")
    return [made, trained]


def _build_settings(bases: Sequence[str]) -> list[Any]:
    """The inputs of `plan` after the run."""
    base = gr.Radio(
        bases, value=usual_checkpoint(bases), label="Start from", visible=len(bases) > 1
    )
    with gr.Group():
        source = gr.Radio([FACES, UPLOAD], value=FACES, label="Records")
        count = gr.Slider(
            100,
            MAX_TRAIN_RECORDS,
            value=1000,
            step=100,
            label="How many faces",
            info="Synthetic: nobody's face is in them.",
        )
        with gr.Column(visible=False) as own:
            files = gr.File(
                label=f"Zip, or pictures and metadata, up to {TRAIN_UPLOAD_MEGABYTES} MB",
                file_count="multiple",
            )
            gr.Markdown(OWN, elem_classes="promise")
    with gr.Group():
        epsilon = gr.Number(
            10,
            label="Epsilon",
            info="Less is more private. A run without a bound is not offered on this page.",
        )
        steps = gr.Number(24, step=1, label="Steps")
        batch = gr.Number(
            0,
            step=1,
            label="Expected batch size",
            info="0: a quarter of the records.",
        )
        delta = gr.Number(0, label="Delta", info="Below 1 / records. 0: at most a tenth of that.")
    source.change(
        lambda source: (gr.Slider(visible=source == FACES), gr.Column(visible=source == UPLOAD)),
        source,
        [count, own],
        api_visibility="private",
        queue=False,
    )
    return [base, source, count, files, epsilon, steps, batch, delta]


def _build_progress() -> list[Any]:
    """The outputs of `train`."""
    status = gr.Markdown("Make a plan, then start.", elem_classes="answer", elem_id="training")
    gr.Markdown(PRIVATE, elem_classes="promise")
    with gr.Row():
        with gr.Column(min_width=280):
            loss = gr.Plot(label="PRIVATE: the loss", format="png", elem_classes="framed")
        with gr.Column(min_width=280):
            spent = gr.Plot(label="Epsilon spent", format="png", elem_classes="framed")
    files = gr.Files(
        label="The release, zipped: model and privacy card", interactive=False, height=90
    )
    with gr.Accordion("Its privacy card", open=False):
        card = gr.Markdown(elem_classes="card")
    return [status, loss, spent, files, card]


def _build_drawing(run: gr.State, base: gr.Radio) -> None:
    gr.Markdown("### Draw with your model\nCompared with the public model it started from.")
    with gr.Row(elem_classes="prompt"):
        caption = gr.Textbox(
            first_caption(family_of(base.value)),
            label="Caption",
            max_lines=4,
            max_length=MAX_CAPTION_CHARACTERS,
            scale=6,
            min_width=300,
            elem_id="trained-caption",
        )
        seed = gr.Number(0, step=1, label="Seed", min_width=100)
        button = gr.Button("Draw", variant="primary", size="lg", min_width=100)
    base.input(
        lambda caption, base: carried(caption, family_of(base), first_caption),
        [caption, base],
        caption,
        api_visibility="private",
        queue=False,
    )
    rows = build_rows("trained", 2)
    gr.on(
        [button.click, caption.submit],
        draw,
        [run, caption, seed],
        rows,
        api_name="draw",
        concurrency_limit=1,
        concurrency_id=MODEL_QUEUE,
        show_progress_on=rows[2],
    )
