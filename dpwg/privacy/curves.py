"""What a ledger leaves an attacker, as curves and in words; and epsilon over its steps.

By PLD. The grid of privacy losses follows the ledger's epsilon, so that a curve takes about a
second; losses are rounded up, so that every point is still an upper bound, by less than 1 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from dpwg.privacy.accountants import COARSE, MAX_EPSILON, Runs, finest_grid, is_unbounded
from dpwg.privacy.accounting import Ledger, LedgerEntry, percent_text

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

_ROUGH_DELTA = 1e-5
_LEAST_DELTA = 1e-10
_TANGENTS = 400


def explain(ledger: Ledger) -> str:
    """One sentence in plain words on what a ledger leaves an attacker."""
    if not ledger.entries:
        return "This model saw no sensitive record, so it can reveal nothing about one."
    if ledger.runs and _pairs(ledger.runs) is None:
        return "There is no bound on what this model may reveal about a training record."
    (rate,) = max_true_positive_rates(ledger, [0.01])
    return (
        "Whatever else they know, an attacker who accepts 1 % false alarms can recognise "
        f"a training record at most {percent_text(rate)} of the time."
    )


def doubt_about(delta: float, *, records: int) -> str:
    """A sentence where delta is more than a tenth of 1/records, which is weak; else nothing."""
    if delta * records <= 0.1 * (1 + 1e-9):
        return ""
    return (
        f"Delta {delta:g} is more than a tenth of 1/records, which is weak: a model that keeps it "
        f"may still give a whole record away; {0.1 / records:.3g} or less is usual."
    )


def max_true_positive_rates(ledger: Ledger, false_positive_rates: Sequence[float]) -> list[float]:
    """Most that any attack on these very steps can detect at each rate of false positives.

    The lower envelope of `max_true_positive_rate` over the pairs (epsilon, delta) that the ledger
    keeps: nowhere above that of a single pair. No steps leave only guessing.
    """
    rates = np.asarray(false_positive_rates, dtype=np.float64)
    if not (runs := ledger.runs):
        return rates.tolist()
    pairs = _pairs(runs)
    if pairs is None:
        return [1.0] * len(rates)
    epsilons_E1, deltas_E1 = (side[:, None] for side in pairs)
    slopes_E1 = np.exp(epsilons_E1)
    few = slopes_E1 * rates + deltas_E1
    many = 1 - (1 - deltas_E1 - rates) / slopes_E1
    best: list[float] = np.minimum(few, many).min(axis=0).clip(rates, 1).tolist()
    return best


def max_true_positive_rate(
    epsilon: float | None, delta: float, false_positive_rate: float
) -> float:
    """Most that an attack can detect on any mechanism that keeps one (epsilon, delta), in [0, 1].

    min(e^eps a + delta, 1 - e^-eps (1 - delta - a)), Kairouz et al. 2015; None or inf gives 1.
    """
    if epsilon is None or epsilon == math.inf:
        return 1.0
    few = math.exp(min(epsilon, MAX_EPSILON)) * false_positive_rate + delta
    many = 1 - math.exp(-epsilon) * (1 - delta - false_positive_rate)
    return min(few, many, 1.0)


def epsilon_over_steps(
    *, sampling_rate: float, noise_multiplier: float, delta: float, steps: Sequence[int]
) -> list[float]:
    """PLD epsilon after each of these numbers of Poisson-sampled Gaussian steps; inf is no bound.

    >>> epsilon_over_steps(sampling_rate=1.0, noise_multiplier=0.0, delta=1e-5, steps=[0, 1])
    [0.0, inf]
    """
    Ledger().pld_epsilon(delta)  # refuses a delta out of range
    longest = LedgerEntry(
        sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=max(1, *steps)
    )
    runs = Ledger(entries=[longest]).runs
    if is_unbounded(runs):
        return [math.inf if count else 0.0 for count in steps]
    one = _one_step(*runs[0][:2], _interval(runs))

    def epsilon(count: int) -> float:
        with np.errstate(over="ignore"):  # e^709 overflows, past MAX_EPSILON
            spent = float(one.self_compose(count).get_epsilon_for_delta(delta))
        return spent if spent <= MAX_EPSILON else math.inf

    return [epsilon(count) if count else 0.0 for count in steps]


@lru_cache(maxsize=64)
def _pairs(runs: Runs) -> tuple[np.ndarray, np.ndarray] | None:
    """Epsilons from 0 on, evenly spaced, with their deltas; None where nothing is bounded."""
    if is_unbounded(runs):
        return None
    with np.errstate(over="ignore"):
        losses = _composed(runs, _interval(runs))
        last = float(losses.get_epsilon_for_delta(_LEAST_DELTA))
        if last > MAX_EPSILON:
            return None
        epsilons_E = np.linspace(0, last, _TANGENTS)
        return epsilons_E, np.asarray(losses.get_delta_for_epsilon(epsilons_E.tolist()))


def _interval(runs: Runs) -> float:
    """A grid on which rounding adds little to this run's epsilon."""
    with np.errstate(over="ignore"):
        rough = float(_composed(runs, COARSE).get_epsilon_for_delta(_ROUGH_DELTA))
    steps = sum(count for _, _, count in runs)
    return min(max(rough / (500 * math.sqrt(steps)), finest_grid(runs)), COARSE)


def _composed(runs: Runs, interval: float) -> PrivacyLossDistribution:
    first, *others = [_one_step(rate, noise, interval).self_compose(n) for rate, noise, n in runs]
    for other in others:
        first = first.compose(other)
    return first


@lru_cache(maxsize=16)
def _one_step(rate: float, noise: float, interval: float) -> PrivacyLossDistribution:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(
        noise,
        sampling_prob=rate,
        value_discretization_interval=interval,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
