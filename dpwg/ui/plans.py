"""A plan for the Train tab: what a visitor asks for, checked, and what it means in words."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dpwg.privacy import accounting
from dpwg.privacy.accounting import PrivacyPlan, epsilon_text
from dpwg.privacy.curves import doubt_about, explain
from dpwg.release.folder import checkpoint_names, find_checkpoint, load_card
from dpwg.training.cost import Rehearsal
from dpwg.ui import limits
from dpwg.ui.families import family_of, siblings
from dpwg.ui.limits import whole, within

MAX_GRAD_NORM = 0.1


@dataclass(frozen=True)
class Order:
    """What is to be trained: the public base, the plan, and the epsilon that it was made for."""

    base: str
    plan: PrivacyPlan
    target: float


def ordered(
    records: int, base: str, epsilon: float, steps: int, batch: int | None, delta: float | None
) -> Order:
    """The plan for so many records; a batch or a delta of 0 or None, as of an empty field, is left
    to `default_batch` and `default_delta`.

    Raises ValueError, in words, for what is out of bounds or no public checkpoint.
    """
    if base not in (names := public_names(checkpoint_names())):
        raise ValueError(f"Expected base={base!r:.80} in {names}.")
    records = whole("records", records, limits.MIN_TRAIN_RECORDS, limits.MAX_TRAIN_RECORDS)
    target = within("epsilon", epsilon, limits.MIN_TRAIN_EPSILON, limits.MAX_TRAIN_EPSILON)
    default = accounting.default_delta(records)
    most = limits.MAX_TRAIN_BATCH
    plan = PrivacyPlan.calibrated(
        records=records,
        batch_size=whole("batch", batch, 1, most) if batch else default_batch(records),
        steps=whole("steps", steps, 1, limits.MAX_TRAIN_STEPS),
        delta=within("delta", delta, accounting.MIN_DELTA, 1) if delta else default,
        max_grad_norm=MAX_GRAD_NORM,
        target_epsilon=target,
    )
    return Order(base, plan, target)


def public_names(names: Sequence[str]) -> list[str]:
    """The checkpoints to begin from, by name; one that saw sensitive records is refused later."""
    return [name for name in names if name.rpartition("/")[2] == "public"]


def default_batch(records: int) -> int:
    """A quarter of the records: of few records a small part would drown in the noise."""
    return min(limits.MAX_TRAIN_BATCH, -(-records // 4))


def spent_after(plan: PrivacyPlan, steps: int) -> float:
    """Epsilon by PLD after so many steps of the plan."""
    return accounting.pld_epsilon(
        sampling_rate=plan.sampling_rate,
        noise_multiplier=plan.noise_multiplier,
        steps=steps,
        delta=plan.delta,
    )


def seconds_of(plan: PrivacyPlan, measured: Rehearsal) -> float:
    """What all steps take: the gradients as rehearsed, and the accounting after each."""
    started = time.perf_counter()
    spent_after(plan, -(-plan.steps // 2))
    accounting = time.perf_counter() - started
    micro_batches = -(-plan.batch_size // measured.micro_batch)
    return plan.steps * (micro_batches * measured.seconds_per_micro_batch + accounting)


def promise(plan: PrivacyPlan, spent: float) -> str:
    """What the plan spends, and what that means."""
    doubt = doubt_about(plan.delta, records=plan.records)
    return f"**ε = {epsilon_text(spent)} at δ = {plan.delta:g}.** {explain(plan.ledger)} {doubt}"


def table(plan: PrivacyPlan, spent: float) -> list[list[str]]:
    """The plan's figures by name."""
    return [
        ["records", f"{plan.records:,}"],
        ["expected batch", f"{plan.batch_size:,}"],
        ["sampling rate", f"{plan.sampling_rate:.4g}"],
        ["steps", f"{plan.steps}"],
        ["noise multiplier", f"{plan.noise_multiplier:.4g}"],
        ["epsilon (PLD)", epsilon_text(spent)],
        ["delta", f"{plan.delta:g}"],
    ]


def noise_to_signal(noise_multiplier: float, batch_size: float, parameters: int) -> float:
    """How long a step's noise is, beside the longest sum that its records can give.

    Noise of standard deviation noise_multiplier * C in each of `parameters` coordinates has length
    near noise_multiplier * C * sqrt(parameters); `batch_size` gradients clipped to C sum up to
    batch_size * C at most, where all of them agree.
    """
    return noise_multiplier * math.sqrt(parameters) / batch_size


def expectation(plan: PrivacyPlan, measured: Rehearsal, base: str) -> str:
    """What quality to expect of so many records, from the plan's numbers and the shipped cards."""
    parameters = measured.trainable_parameters
    ratio = noise_to_signal(plan.noise_multiplier, plan.batch_size, parameters)
    if ratio > 1:
        verdict = """### ⚠ Expect little
The noise outweighs the records in every step, so the model may end up no better than the public
one, or worse. More records help most; so do a larger batch and a larger epsilon."""
    else:
        verdict = """### What to expect
The records stand out from the noise; how much is learnt depends on how far they agree."""
    return f"""{verdict}

One record can move a step's sum by the clip norm, {plan.max_grad_norm:g}; the noise on each number
is **{plan.noise_multiplier:.3g} times** that. Over all {parameters:,} numbers that are trained, the
noise is **{ratio:.2g} times** as long as the sum of an expected batch can be at most.
{_peers(base, parameters)}"""


def _peers(base: str, parameters: int) -> str:
    """The same figure for the private checkpoints that began from the same base."""
    told = []
    for name in siblings(family_of(base)):
        try:
            card = load_card(find_checkpoint(name))
        except (ValueError, OSError):  # a damaged one; the pages that show it say so
            continue
        if card.noise_multiplier and card.sampling_rate:
            batch = card.sampling_rate * card.records
            ratio = noise_to_signal(card.noise_multiplier, batch, parameters)
            told.append(f"{ratio:.2g} for `{name}` ({card.records:,} records)")
    return f"With as many numbers it is {', '.join(told)}." if told else ""


def clock(seconds: float) -> str:
    """Minutes and seconds, rounded up."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
