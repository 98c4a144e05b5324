"""The Train tab's components, and what each of them sets to work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from dpwg.ui.families import carried, family_of, first_caption, usual_checkpoint
from dpwg.ui.limits import MAX_TRAIN_RECORDS, TRAIN_UPLOAD_MEGABYTES, described_training
from dpwg.ui.parts import ON_MODEL, QUIET, big_button, caption_box, plot
from dpwg.ui.plans import public_names
from dpwg.ui.rows import build_rows
from dpwg.ui.train import FACES, UPLOAD, Training, draw, plan, stop, train

INTRODUCTION = """Fine-tune the public model with DP-SGD, on pictures of your own or on a small part
of `faces`. Only the model is released afterwards; epsilon bounds what it can tell about any one
picture and its captions."""
OWN = """A zip, or the files themselves: pictures (PNG, JPEG, WebP) and a `metadata.jsonl` or
`metadata.csv` with a `file_name` and a `text` for each. Every picture is checked and decoded before
anything is trained, and the files as you sent them are removed at once. The checked pictures stay
on this server, for this page of yours alone, until the run is done, you make a plan for others, or
their time is over. Whoever runs the server could read them."""
PRIVATE = """**Private: the loss.** It is computed from the sensitive records without noise, and
epsilon does not cover it: it is for the owner of the data only. Stopping or changing settings
*because of it* is a choice that no ledger counts, so a stopped run has no result; it can go on from
its last step. Every run on the same pictures spends an epsilon of its own, on top of the others."""


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
            info="Synthetic: they are nobody's faces.",
        )
        with gr.Column(visible=False) as own:
            files = gr.File(
                label=f"Zip, or pictures and metadata, up to {TRAIN_UPLOAD_MEGABYTES} MB",
                file_count="multiple",
            )
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
    plots = []
    with gr.Row():
        for label in ("PRIVATE: the loss", "Epsilon spent"):
            with gr.Column(min_width=280):
                plots.append(plot(label))
    files = gr.Files(
        label="The release, zipped: model and privacy card", interactive=False, height=90
    )
    with gr.Accordion("Its privacy card", open=False):
        card = gr.Markdown(elem_classes="card")
    return [status, *plots, files, card]


def _build_drawing(run: gr.State, base: gr.Radio) -> None:
    gr.Markdown("### Draw with your model\nBeside the public model that it started from.")
    with gr.Row(elem_classes="prompt"):
        caption = caption_box("trained-caption", first_caption(family_of(base.value)))
        seed = gr.Number(0, step=1, label="Seed", min_width=100)
        button = big_button("Draw", "primary")
    base.input(
        lambda caption, base: carried(caption, family_of(base), first_caption),
        [caption, base],
        caption,
        **QUIET,
    )
    rows = build_rows("trained", 2)
    gr.on(
        [button.click, caption.submit],
        draw,
        [run, caption, seed],
        rows,
        api_name="draw",
        show_progress_on=rows[2],
        **ON_MODEL,
    )
