"""The Attack tab: which records was a checkpoint trained on, and does it draw them again?"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from typing import NamedTuple

import gradio as gr
from matplotlib.figure import Figure

from dpwg.data.faces import TEST_RECORDS
from dpwg.measure.membership import (
    COUNT,
    REFERENCE,
    MembershipAttack,
    calibrated_scores,
    check_reference,
    membership_attack,
    result_file,
)
from dpwg.method.pipeline import MAX_SEED
from dpwg.privacy.accounting import epsilon_text, percent_text
from dpwg.privacy.card import PrivacyCard
from dpwg.privacy.curves import max_true_positive_rates
from dpwg.release.folder import find_checkpoint, named_weights_sha256
from dpwg.ui.families import usual_checkpoint
from dpwg.ui.figures import roc_figure, scores_figure
from dpwg.ui.fresh import DATA, OTHERS, PROGRESS, WORK, claim, encoded_faces, refusal
from dpwg.ui.limits import MAX_ATTACKED, MIN_ATTACKED, whole
from dpwg.ui.nearest import build_nearest
from dpwg.ui.pipelines import MODEL_QUEUE, load_pipeline
from dpwg.ui.results import ENGINE, MEMBERSHIP, engine_runs, membership_result
from dpwg.ui.shown import random_seed

INTRODUCTION = """**Membership inference**: somebody holds a record and asks whether the model was
trained on it. Models predict what they were trained on a little better. So this attacker takes the
checkpoint's loss on the record, subtracts it from the public model's loss on the same record (some
records are hard for every model), and says "training record" where the difference, the **score**,
is high. Here the truth is known, so the guesses can be marked.

What one attack finds is a **lower bound**: another one may find more. Epsilon bounds *all* attacks
from above, and the steps in the checkpoint's ledger, the **mechanism** itself, bound them more
tightly: one pair of epsilon and delta sums up a whole curve of such pairs. An attack that fails
proves nothing about safety; one that finds more than the ledger allows proves that something is
broken."""
CANARIES = """### The engine under attack: canaries

The engine that trained the private checkpoints can be attacked harder than a finished checkpoint.
**Canaries**, records made to pull the gradient into directions of their own, join the data by the
toss of a coin each; the attacker reads every noisy gradient, far more than a release shows, and
guesses the coins. Enough right guesses prove a lower bound on epsilon
([Steinke et al. 2023](https://arxiv.org/abs/2305.08846)). One above what the ledger claims would
prove a broken engine; one below it is what a sound engine gives, and what a broken one may give."""


class Found(NamedTuple):
    """What an attack shows, in the order of its components."""

    told: str
    scores: Figure | None
    roc: Figure | None
    table: list[list[str]]
    source: str


def attack(name: str) -> Found:
    """The stored attack on a checkpoint; without a file of these very weights, what writes one."""
    card = claim(name)
    if card.kind == "public":
        return _words(
            f"**{name} saw no sensitive record**, so there is nothing to infer: an attacker can "
            "only guess. Its loss is what the other checkpoints' losses are compared with."
        )
    if reason := refusal(name, card):
        return _words(reason)
    file = f"docs/results/{MEMBERSHIP}/{result_file(name)}"
    remedy = f"This command measures it and writes `{file}`:\n```sh\n{_command(name)}\n```"
    try:
        found = membership_result(name)
    except ValueError as error:
        return _words(f"**The stored result of {name} is damaged.** {error} {remedy}")
    if found is None:
        return _words(f"**{name} was not measured yet.** {remedy}")
    now = (named_weights_sha256(find_checkpoint(name)), card.epsilon, card.delta)
    if (found.weights, found.epsilon, found.delta) != now:
        return _words(
            f"**The stored result is not of the weights that {name} has now**, so it is not shown. "
            f"{remedy}"
        )
    return _found(found, card, f"Stored in `{file}`, written by `{_command(name, found)}`.")


def attack_live(name: str, count: int, seed: int, progress: gr.Progress = PROGRESS) -> Found:
    """The same attack now, on `count` training and `count` held-out records that are rendered
    and encoded for it; `seed` decides which.
    """
    card = claim(name)
    if reason := refusal(name, card):
        raise gr.Error(reason)
    try:
        count = whole("records", count, MIN_ATTACKED, min(MAX_ATTACKED, card.records))
        seed = whole("seed", seed, 0, MAX_SEED)
        draw = random.Random(seed)
        began = time.perf_counter()
        progress(0, desc="loading models")
        pipe, public = load_pipeline(name), load_pipeline(REFERENCE)
        check_reference(pipe.release, public.release)
        work, scores = (WORK + 1) * count, []
        for before, split, total in ((0, "train", card.records), (work, "test", TEST_RECORDS)):

            def told(done: int, doing: str, before: int = before) -> None:
                progress((before + done, 2 * work), desc=doing, unit="steps")

            indices = sorted(draw.sample(range(total), count))
            examples = encoded_faces(split, indices, pipe, told)
            told(WORK * count, f"losses of {split} records")
            found = calibrated_scores(pipe.release.model, public.release.model, examples)
            scores.append(found.double().numpy())
        result = membership_attack(
            *scores,
            checkpoint=name,
            weights=named_weights_sha256(find_checkpoint(name)),
            reference=REFERENCE,
            data=DATA,
            others=OTHERS,
            epsilon=card.epsilon,
            delta=card.delta,
        )
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raise gr.Error(str(error)) from error
    seconds = time.perf_counter() - began
    origin = f"Run just now, in {seconds:.0f} s; seed {seed} picked the records."
    return _found(result, card, origin)


def engine_told() -> str:
    """What attacks on the engine proved, as a table with the command that made it."""
    command = f"`python -m dpwg audit --results docs/results/{ENGINE}`"
    try:
        runs = engine_runs()
    except ValueError as error:
        return f"The stored result is damaged. {error} {command} writes it anew."
    if not runs:
        return f"No result came with this copy; {command} writes one."
    rows = [
        f"| {epsilon_text(run.claimed)} | {math.floor(1000 * run.proven) / 1000:g} | "
        f"{run.correct} of {run.guesses} |"
        for run in runs
    ]
    first, broken = runs[0], any(run.proven > run.claimed for run in runs)
    verdict = (
        "**A ledger is refuted: the engine is broken.**" if broken else "No ledger is refuted."
    )
    return "\n".join(
        (
            "Epsilon as the ledger claims it, and as the attacker proves it at least:",
            "",
            "| claimed | proven | right guesses |",
            "| --- | --- | --- |",
            *rows,
            "",
            f"{verdict} Each from one run of {first.steps} steps on {first.canaries:,} canaries, "
            f"at δ = {first.delta:g} and with {first.confidence:.0%} confidence: {command}.",
        )
    )


def _command(name: str, found: MembershipAttack | None = None) -> str:
    """What measures a checkpoint, or measured it so."""
    options = ""
    if found is not None:
        count = max(found.members, found.nonmembers)
        options = f" --count {count}" if count != COUNT else ""
        options += f" --reference {found.reference}" if found.reference != REFERENCE else ""
    folder = f"docs/results/{MEMBERSHIP}"
    return f"python -m dpwg audit --checkpoint {name}{options} --results {folder}"


def _words(told: str) -> Found:
    return Found(told, None, None, [], "")


def _found(found: MembershipAttack, card: PrivacyCard, origin: str) -> Found:
    ledger = card.ledger
    rates = [point.false_positive_rate for point in found.true_positives]
    limits = max_true_positive_rates(ledger, rates)
    table = []
    for point, limit in zip(found.true_positives, limits, strict=True):
        bounds = [percent_text(point.allowed), percent_text(limit)]
        row = [f"{point.false_positive_rate:.1%}"]
        if point.false_positive_rate * found.nonmembers < 1:
            least = math.ceil(1 / point.false_positive_rate)
            table.append([*row, f"needs {least:,} held-out records", *bounds])
            continue
        rate = f"{point.rate:.2%} ({point.low:.2%} to {point.high:.2%})"
        table.append([*row, rate, *bounds])
    source = (
        f"{found.members:,} records of `{found.data}`, which it was trained on, against "
        f"{found.nonmembers:,} of `{found.others}`, which it was not; losses calibrated by "
        f"`{found.reference}`. {origin} Intervals are at 95 %; those of the rates take the "
        "threshold as given."
    )
    told = _told(found, limits)
    return Found(told, scores_figure(found), roc_figure(found, ledger), table, source)


def _told(found: MembershipAttack, limits: Sequence[float]) -> str:
    """The verdict; `limits` are what the mechanism allows at the rates of `true_positives`."""
    if found.auc_low > 0.5:
        judged = "That is better than guessing: the model shows something of what it was trained on"
    elif found.auc_high < 0.5:
        judged = "That is worse than guessing, so this attack is of no use"
    else:
        judged = "With so many records that cannot be told from guessing"
    broken = [
        point
        for point, limit in zip(found.true_positives, limits, strict=True)
        if point.false_positive_rate * found.nonmembers >= 1 and point.low > limit
    ]
    if found.epsilon is None:
        bound = (
            "It was trained without privacy: **nothing bounds** what a better attack would find, "
            "and no curve is drawn."
        )
    elif broken:
        bound = (
            f"**It finds more than the ledger of ε = {epsilon_text(found.epsilon)} allows** at "
            f"{broken[0].false_positive_rate:.1%} false positives. That is rare bad luck, or the "
            "privacy claim is false."
        )
    else:
        bound = (
            f"It finds nothing that refutes ε = {epsilon_text(found.epsilon)}. That is no proof of "
            "safety: a better attack may find more, up to the curve."
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
    with gr.Row(elem_classes=["page", "form"]):
        with gr.Column(elem_classes="settings"):
            name = gr.Radio(
                names, value=usual_checkpoint(names), label="Checkpoint", elem_id="attacked"
            )
            with gr.Group():
                count = gr.Slider(
                    MIN_ATTACKED,
                    MAX_ATTACKED,
                    value=250,
                    step=50,
                    label="Records of each kind",
                    info="Rendered and encoded for the attack.",
                )
                seed = gr.Number(0, step=1, label="Seed", info="Picks the records.")
                dice = gr.Button("⚄ Random seed", size="sm")
            button = gr.Button("Attack it now", variant="primary")
            offer = gr.Markdown(elem_classes="status")
        with gr.Column(elem_classes="results"):
            told = gr.Markdown("…", elem_classes="answer", elem_id="attack-told")
            table = gr.Dataframe(
                headers=["false alarms", "found (95 %)", "(ε, δ) allows", "ledger allows"],
                label="Training records recognised",
                wrap=True,
                column_widths=["21%", "33%", "22%", "24%"],
                interactive=False,
            )
            with gr.Row():
                with gr.Column(min_width=280):
                    scores = gr.Plot(label="Scores", format="png", elem_classes="framed")
                with gr.Column(min_width=280):
                    roc = gr.Plot(
                        label="Attack and bound (ROC)", format="png", elem_classes="framed"
                    )
            source = gr.Markdown(elem_classes="status")
        with gr.Column(elem_classes="extras"):
            gr.Markdown(f"{CANARIES}\n\n{engine_told()}")
    found = [told, scores, roc, table, source]
    gr.on(
        [tab.select, name.change],
        attack,
        name,
        found,
        api_name="attack",
        show_progress_on=told,
        trigger_mode="always_last",
    )
    gr.on(
        [tab.select, name.change],
        _offer,
        name,
        [button, offer],
        api_visibility="private",
        trigger_mode="always_last",
    )
    button.click(
        attack_live,
        [name, count, seed],
        found,
        api_name="attack_live",
        concurrency_limit=1,
        concurrency_id=MODEL_QUEUE,
        show_progress_on=told,
    )
    dice.click(random_seed, outputs=seed, api_visibility="private")
    build_nearest(shown, name, own)


def _offer(name: str) -> tuple[gr.Button, str]:
    reason = refusal(name, claim(name))
    told = reason or (
        "Small and live: few records give wide intervals. It replaces the stored result on the "
        "right until another checkpoint is picked."
    )
    return gr.Button(interactive=not reason), told
