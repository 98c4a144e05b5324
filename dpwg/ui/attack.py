"""The Attack tab: which records was a checkpoint trained on, and does it draw them again?"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import gradio as gr
from matplotlib.figure import Figure

from dpwg.data.faces import TEST_RECORDS
from dpwg.measure import membership
from dpwg.measure.membership import COUNT, REFERENCE, MembershipAttack, result_file
from dpwg.method.pipeline import MAX_SEED, DPWaveletPipeline
from dpwg.privacy.accounting import epsilon_text, percent_text
from dpwg.privacy.card import PrivacyCard
from dpwg.privacy.curves import max_true_positive_rates
from dpwg.release.folder import named_weights_sha256
from dpwg.training.encodings import encode_examples, prepare_examples
from dpwg.training.examples import Examples
from dpwg.ui.families import usual_checkpoint
from dpwg.ui.figures import roc_figure, scores_figure
from dpwg.ui.limits import MAX_ATTACKED, MIN_ATTACKED, whole
from dpwg.ui.nearest import DATA, build_nearest, refusal
from dpwg.ui.own import card_of
from dpwg.ui.parts import ON_MODEL, PROGRESS, in_words, plots, seed_field, slider, table
from dpwg.ui.pipelines import load_pipeline, named
from dpwg.ui.results import ENGINE, MEMBERSHIP, engine_runs, membership_result
from dpwg.ui.runs import Faces

INTRODUCTION, CANARIES, NEAREST = Path(__file__).with_name("attack.md").read_text().split("\n---\n")


class Found(NamedTuple):
    """What an attack shows, in the order of its components."""

    told: str
    scores: Figure | None = None
    roc: Figure | None = None
    table: list[list[str]] | None = None
    source: str = ""


def attack(name: str) -> Found:
    """The stored attack on a checkpoint; without a file of these very weights, what writes one."""
    with in_words():
        card = card_of(name)
    if reason := refusal(name, card):
        return Found(reason)
    file = f"docs/results/{MEMBERSHIP}/{result_file(name)}"
    try:
        found = membership_result(name, card)
    except ValueError as error:
        return Found(
            f"**There is no result to show.** {error} This command measures it and writes "
            f"`{file}`:\n```sh\n{_command(name)}\n```"
        )
    command = _command(name, max(found.members, found.nonmembers))
    return _found(found, card, f"Stored in `{file}`, written by `{command}`.")


def attack_live(name: str, count: int, seed: int, progress: gr.Progress = PROGRESS) -> Found:
    """The same attack now, on `count` training and `count` held-out records that are rendered
    and encoded for it; `seed` decides which.
    """
    with in_words():
        card = card_of(name)
        if reason := refusal(name, card):
            raise ValueError(reason)
        count = whole("records", count, MIN_ATTACKED, min(MAX_ATTACKED, card.records))
        draw, began = random.Random(whole("seed", seed, 0, MAX_SEED)), time.perf_counter()
        progress(0, desc="loading models")
        pipe, public = load_pipeline(name), load_pipeline(REFERENCE)
        membership.check_reference(pipe.release, public.release)
        scores = []
        for split, total in (("train", card.records), ("test", TEST_RECORDS)):
            records = Faces(split, sorted(draw.sample(range(total), count)))
            examples = _encoded(records, pipe, progress)
            progress(None, desc=f"{records.name}: losses")
            found = membership.calibrated_scores(pipe.release.model, public.release.model, examples)
            scores.append(found.double().numpy())
        result = membership.membership_attack(
            *scores,
            checkpoint=name,
            weights=named_weights_sha256(named(name)),
            reference=REFERENCE,
            data=DATA,
            others="faces-test",
            epsilon=card.epsilon,
            delta=card.delta,
        )
    seconds = time.perf_counter() - began
    origin = f"Run just now, in {seconds:.0f} s; seed {seed:g} picked the records."
    return _found(result, card, origin)


def _encoded(records: Faces, pipe: DPWaveletPipeline, progress: gr.Progress) -> Examples:
    """Records as the checkpoint was trained on them."""
    with TemporaryDirectory(prefix="dpwg-") as folder:
        inputs = (records, pipe.encoder, pipe.release.tokenizer, Path(folder))
        for done in encode_examples(*inputs):
            progress((done.step, done.steps), desc=f"{records.name}: {done.stage}", unit="records")
        return prepare_examples(*inputs)


def engine_told() -> str:
    """What attacks on the engine proved, as a table with the command that made it."""
    command = f"`python -m dpwg audit --results docs/results/{ENGINE}`"
    try:
        if not (runs := engine_runs()):
            return f"No result came with this copy; {command} writes one."
        rows = "\n".join(
            f"| {epsilon_text(run['ledger_epsilon'])} | "
            f"{math.floor(1000 * run['proven_epsilon']) / 1000:g} | "
            f"{run['correct']} of {run['guesses']} |"
            for run in runs
        )
        about = (
            "Each from one run of {steps} steps on {records:,} canaries, at δ = {delta:g} and with "
            "{confidence:.0%} confidence"
        ).format_map(runs[0])
        broken = any(run["proven_epsilon"] > run["ledger_epsilon"] for run in runs)
    except (ValueError, KeyError, TypeError):
        return f"The stored result is damaged. {command} writes it anew."
    refuted = "**A ledger is refuted: the engine is broken.**"
    return (
        "Epsilon as the ledger claims it, and as the attacker proves it at least:\n\n"
        f"| claimed | proven | right guesses |\n| --- | --- | --- |\n{rows}\n\n"
        f"{refuted if broken else 'No ledger is refuted.'} {about}: {command}."
    )


def _command(name: str, count: int = COUNT) -> str:
    """What measures a checkpoint, or measured it on so many records."""
    several = "" if count == COUNT else f" --count {count}"
    return f"python -m dpwg attack {name}{several} --results docs/results/{MEMBERSHIP}"


def _found(found: MembershipAttack, card: PrivacyCard, origin: str) -> Found:
    rates = [point.false_positive_rate for point in found.true_positives]
    limits = max_true_positive_rates(card.ledger, rates)
    rows = []
    for rate, point, limit in zip(rates, found.true_positives, limits, strict=True):
        told = f"{point.rate:.2%} ({point.low:.2%} to {point.high:.2%})"
        if rate * found.nonmembers < 1:
            told = f"needs {math.ceil(1 / rate):,} held-out records"
        rows.append([f"{rate:.1%}", told, percent_text(limit)])
    source = (
        f"{found.members:,} records of `{found.data}`, which it was trained on, against "
        f"{found.nonmembers:,} of `{found.others}`, which it was not; losses calibrated by "
        f"`{found.reference}`. {origin} Intervals are at 95 %; those of the rates take the "
        "threshold as given."
    )
    told = _told(found, limits)
    return Found(told, scores_figure(found), roc_figure(found, card.ledger), rows, source)


def _told(found: MembershipAttack, limits: Sequence[float]) -> str:
    """The verdict; `limits` are what the ledger allows at the rates of `true_positives`."""
    if found.auc_low > 0.5:
        judged = "That is better than guessing: the model shows something of what it was trained on"
    elif found.auc_high < 0.5:
        judged = "That is worse than guessing, so this attack is of no use"
    else:
        judged = "With so many records that cannot be told from guessing"
    broken = [
        point.false_positive_rate
        for point, limit in zip(found.true_positives, limits, strict=True)
        if point.false_positive_rate * found.nonmembers >= 1 and point.low > limit
    ]
    claim = f"ε = {epsilon_text(found.epsilon)}"
    if found.epsilon is None:
        bound = (
            "It was trained without privacy: **nothing bounds** what a better attack would find, "
            "and no curve is drawn."
        )
    elif broken:
        bound = (
            f"**It finds more than the ledger of {claim} allows** at {broken[0]:.1%} false "
            "positives. That is rare bad luck, or the privacy claim is false."
        )
    else:
        bound = (
            f"It finds nothing that refutes {claim}. That is no proof of safety: a better attack "
            "may find more, up to the curve."
        )
    return (
        f"**{found.checkpoint}: AUC {found.auc:.3f}** (interval {found.auc_low:.3f} to "
        f"{found.auc_high:.3f}): shown a training and a held-out record, this attack "
        f"tells which is which {found.auc:.1%} of the time; guessing, half of it. {judged}. {bound}"
    )


def build_attack(names: Sequence[str], shown: gr.State, own: gr.State, tab: gr.Tab) -> None:
    """Add the tab's components; `shown` holds what the Generate tab drew last, `own` the visitor's
    run. Loads no model.
    """
    gr.Markdown(INTRODUCTION)
    usual, widths = usual_checkpoint(names), ["25%", "45%", "30%"]
    with gr.Row(elem_classes=["page", "form"]):
        with gr.Column(elem_classes="settings"):
            name = gr.Radio(names, value=usual, label="Checkpoint", elem_id="attacked")
            with gr.Group():
                count = slider("Records of each kind", MIN_ATTACKED, MAX_ATTACKED, 250, 50)
                seed = seed_field()
            button = gr.Button("Attack it now", variant="primary")
            offer = gr.Markdown(elem_classes="status")
        with gr.Column(elem_classes="results"):
            told = gr.Markdown("…", elem_classes="answer", elem_id="attack-told")
            headers = ["false alarms", "found (95 %)", "at most, by the ledger"]
            rates = table("Training records recognised", headers, wrap=True, column_widths=widths)
            figures = plots("Scores", "Attack and bound (ROC)")
            source = gr.Markdown(elem_classes="status")
        with gr.Column(elem_classes="extras"):
            gr.Markdown(f"{CANARIES}\n\n{engine_told()}")
    found, picked = [told, *figures, rates, source], [tab.select, name.change]
    last: dict[str, Any] = {"trigger_mode": "always_last"}
    gr.on(picked, attack, name, found, show_progress_on=told, **last)
    gr.on(picked, _offer, name, [button, offer], api_visibility="private", **last)
    button.click(attack_live, [name, count, seed], found, show_progress_on=told, **ON_MODEL)
    gr.Markdown(NEAREST)
    build_nearest(shown, name, own)


def _offer(name: str) -> tuple[gr.Button, str]:
    with in_words():
        reason = refusal(name, card_of(name))
    told = reason or (
        "Small and live: few records, rendered for the attack, give wide intervals. It replaces "
        "the stored result on the right until another checkpoint is picked."
    )
    return gr.Button(interactive=not reason), told
