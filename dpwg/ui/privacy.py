"""The Privacy tab: an accountant to play with, what epsilon leaves an attacker, every card."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from matplotlib.figure import Figure

from dpwg.privacy.accountants import MAX_EPSILON, MAX_NOISE
from dpwg.privacy.accounting import MIN_DELTA, PrivacyPlan, default_delta, epsilon_text, rounded_up
from dpwg.privacy.curves import epsilon_over_steps
from dpwg.ui.families import usual_checkpoint
from dpwg.ui.figures import steps_figure, trade_off_figure
from dpwg.ui.limits import MAX_RECORDS, MAX_STEPS, whole, within
from dpwg.ui.own import card_of, describe_checkpoint
from dpwg.ui.parts import QUIET, in_words, plots, table
from dpwg.ui.plans import promise

CURVE_POINTS = 10
RECORDS = 50_000
"""What the page begins with."""
NOISE, EPSILON = "epsilon, from the noise", "noise, from an epsilon"
INTRODUCTION = """Epsilon is a figure about an **attacker**: how well anybody can tell whether one
record was in the training set, from the released model and from everything it generates."""
WORDS = Path(__file__).with_name("privacy.md")
PRINT = """() => {
  document.body.classList.add("printing-card");
  window.print();
  document.body.classList.remove("printing-card");
}"""


class Answer(NamedTuple):
    """What the accountant shows, in the order of its components."""

    noise: float
    epsilon: float | None
    told: str
    table: list[list[str]]
    growth: Figure | None = None
    trade_off: Figure | None = None


def account(
    records: int, batch: int, steps: int, delta: float, known: str, noise: float, epsilon: float
) -> Iterator[Answer]:
    """Epsilon of a noise, or the noise for an epsilon: first by PLD, then with the curves, then by
    all three accountants, since PRV can take seconds.
    """
    with in_words():
        run: dict[str, Any] = {
            "records": whole("records", records, 1, MAX_RECORDS),
            "batch_size": whole("batch", batch, 1, MAX_RECORDS),
            "steps": whole("steps", steps, 1, MAX_STEPS),
            "delta": delta,
            "max_grad_norm": 1.0,
        }
        if known == EPSILON:
            target = within("epsilon", epsilon, 0, MAX_EPSILON)
            plan = PrivacyPlan.calibrated(**run, target_epsilon=target)
        else:
            plan = PrivacyPlan(**run, noise_multiplier=within("noise", noise, 0, MAX_NOISE))
        spent = plan.ledger.pld_epsilon(plan.delta)
        promised, after = promise(plan, spent).split(".** ", 1)
        told = (
            f"{promised}** with noise multiplier {plan.noise_multiplier:.4g}, rate "
            f"{plan.sampling_rate:.4g}, {plan.steps:,} steps. {after}"
        )
        found = rounded_up(spent) if math.isfinite(spent) else None
        answer = Answer(rounded_up(plan.noise_multiplier), found, told, _table(spent))
        yield answer
        trade_off = trade_off_figure(plan.ledger, spent, plan.delta)
        answer = answer._replace(growth=_growth(plan), trade_off=trade_off)
        yield answer
        yield answer._replace(table=_table(*vars(plan.epsilons()).values()))


def _growth(plan: PrivacyPlan) -> Figure | None:
    parts = np.linspace(0, 1, CURVE_POINTS) ** 2  # closer where the curve bends
    points = sorted({0, 1, *(round(plan.steps * float(part)) for part in parts)})
    growth = epsilon_over_steps(
        sampling_rate=plan.sampling_rate,
        noise_multiplier=plan.noise_multiplier,
        delta=plan.delta,
        steps=points,
    )
    return steps_figure(points, growth, plan.delta) if math.isfinite(growth[1]) else None


def _table(pld: float, prv: float | None = None, rdp: float | None = None) -> list[list[str]]:
    def shown(value: float | None) -> str:
        if value is None:
            return "is computed …"
        return "cannot resolve it" if math.isnan(value) else epsilon_text(value)

    names = ("PLD, the figure to quote", "PRV, cross-check", "RDP, looser")
    return [[name, shown(value)] for name, value in zip(names, (pld, prv, rdp), strict=True)]


def settings_of(name: str) -> tuple[int, int, int, float, str, float]:
    """Records, batch, steps, delta and noise of a checkpoint, from its card, for `account`."""
    with in_words():
        card = card_of(name)
        if card.kind == "public":
            raise ValueError(f"{name} took no step on sensitive records: its epsilon is 0.")
        if card.sampling_rate is None or card.noise_multiplier is None:
            raise ValueError(f"{name} has steps of several kinds: see the ledger in its card.")
    batch = round(card.sampling_rate * card.records)
    return card.records, batch, card.steps, card.delta, NOISE, card.noise_multiplier


def build_privacy(names: Sequence[str]) -> None:
    """Add the tab's components. Reads no card before somebody asks."""
    gr.Markdown(INTRODUCTION)
    with gr.Row(elem_classes=["page", "form"]):
        with gr.Column(elem_classes="settings"):
            info = "Takes the figures of its privacy card."
            origin = gr.Dropdown(names, value=None, label="Fill in from a checkpoint", info=info)
            with gr.Group():
                records = gr.Number(RECORDS, label="Records", step=1)
                batch = gr.Number(1024, label="Expected batch size", step=1)
                steps = gr.Number(200, label="Steps", step=1)
                info = f"At most a tenth of 1 / records, as a rule; from {MIN_DELTA:g}."
                delta = gr.Number(default_delta(RECORDS), label="Delta", info=info)
            with gr.Group():
                known = gr.Radio([NOISE, EPSILON], value=NOISE, label="Find")
                noise = gr.Number(1.0, label="Noise multiplier")
                epsilon = gr.Number(3.0, label="Epsilon", interactive=False)
            button = gr.Button("Compute", variant="primary", elem_id="account")
        with gr.Column(elem_classes="results"):
            told = gr.Markdown("Press Compute.", elem_classes="answer")
            epsilons = table("By three accountants", ["accountant", "epsilon"])
            figures = plots("Epsilon over the steps", "The best attack that is left")
        with gr.Column(elem_classes="extras"):
            gr.Markdown(WORDS.read_text())
            gr.Markdown("### Privacy cards")
            with gr.Row():
                name = gr.Radio(names, value=usual_checkpoint(names), label="Checkpoint", scale=4)
                printer = gr.Button("Print this card", size="sm", min_width=140)
            card = gr.Markdown(elem_classes="card", elem_id="printed-card")
    inputs = [records, batch, steps, delta, known, noise, epsilon]
    run: dict[str, Any] = {
        "fn": account,
        "inputs": inputs,
        "outputs": [noise, epsilon, told, epsilons, *figures],
        "show_progress_on": told,
        "concurrency_limit": 1,
        "concurrency_id": "accountant",
    }
    button.click(**run)
    filled = origin.change(settings_of, origin, inputs[:-1])
    filled.success(api_visibility="private", **run)
    known.change(
        lambda asked: [gr.Number(interactive=asked == given) for given in (NOISE, EPSILON)],
        known,
        [noise, epsilon],
        **QUIET,
    )
    gr.on(fn=_card, inputs=name, outputs=card, api_name="card")
    printer.click(None, js=PRINT, api_visibility="private")


def _card(name: str) -> str:
    return f"## {name}\n\n{describe_checkpoint(name)[1]}"
