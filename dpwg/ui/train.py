"""The Train tab's work: a visitor's own records, a plan, a private run, and what came of it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import gradio as gr
from matplotlib.figure import Figure

from dpwg.method.pipeline import MAX_SEED
from dpwg.privacy.accounting import epsilon_text
from dpwg.release.folder import load_card
from dpwg.training.recipe import Note
from dpwg.ui.families import suited_upsampler
from dpwg.ui.figures import loss_figure, steps_figure
from dpwg.ui.limits import MAX_TRAIN_MINUTES, whole
from dpwg.ui.own import YOURS, is_trained, loader
from dpwg.ui.parts import in_words
from dpwg.ui.plans import (
    Order,
    clock,
    expectation,
    ordered,
    promise,
    seconds_of,
    spent_after,
    table,
)
from dpwg.ui.rows import Rows, compare_pipelines
from dpwg.ui.runs import Run

FACES, UPLOAD = "a part of faces", "my own pictures"


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
    yield Planned(None, "Checking …")
    run, kept, wish = None, False, (base, epsilon, steps, batch, delta)
    try:
        if source == FACES:
            order = ordered(count, *wish)
            run = Run()
            run.take_faces(order.plan.records)
        else:
            if not files:
                raise ValueError("Choose a zip, or pictures and their metadata, first.")
            yield Planned(None, "Checking every picture …")
            run = Run()
            records = run.take_upload(files, previous)
            kept = True
            order = ordered(records, *wish)
        spent = spent_after(order.plan, order.plan.steps)
        told, rows = promise(order.plan, spent), table(order.plan, spent)
        yield Planned(run, f"{told} Measuring the time …", rows)
        measured = run.measure(order)
        seconds = seconds_of(order.plan, measured)
        if seconds > 60 * MAX_TRAIN_MINUTES:
            raise ValueError(
                f"This plan takes {clock(seconds)}, more than the limit of {MAX_TRAIN_MINUTES} "
                "minutes; lower the steps or the batch."
            )
        run.order, kept = order, True
        rows = [*rows, ["time, as measured", clock(seconds)]]
        yield Planned(run, f"{told}\n\n{expectation(order.plan, measured, base)}", rows)
    except (TypeError, ValueError, OSError) as error:
        yield Planned(run if kept else None, f"**There is no plan.** {error}")
        raise gr.Error(str(error)) from error
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
    with in_words():
        seed = whole("seed", seed, 0, MAX_SEED)
        pipes = [(title, loader(title, run)) for title in (run.order.base, YOURS)]
        yield from compare_pipelines(pipes, caption, seed, suited_upsampler(run.order.base))


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
