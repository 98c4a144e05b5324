"""Two curves of a run to look at: epsilon over its steps, and the best attack it leaves possible.

Both by PLD. The grid of privacy losses follows the run's epsilon, so that a curve takes about a
second; losses are rounded up, so that every point is still an upper bound, by less than 1 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from dpwg.privacy.accounting import MAX_EPSILON, MIN_NOISE, Ledger, LedgerEntry

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

_FINE, _COARSE = 1e-4, 1e-2
_ROUGH_DELTA = 1e-5
_LEAST_DELTA = 1e-10
_TANGENTS = 400


def epsilon_over_steps(
    *, sampling_rate: float, noise_multiplier: float, delta: float, steps: Sequence[int]
) -> list[float]:
    """PLD epsilon after each of these numbers of Poisson-sampled Gaussian steps; inf is no bound.

    >>> epsilon_over_steps(sampling_rate=1.0, noise_multiplier=0.0, delta=1e-5, steps=[0, 1])
    [0.0, inf]
    """
    Ledger().pld_epsilon(delta)  # refuses a delta out of range
    runs = [
        LedgerEntry(sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=count)
        for count in steps
        if count
    ]
    if not runs or noise_multiplier < MIN_NOISE:
        return [math.inf if count else 0.0 for count in steps]
    longest = max(runs, key=lambda run: run.steps)
    one = _one_step(longest, _interval([longest]))

    def epsilon(count: int) -> float:
        with np.errstate(over="ignore"):  # e^709 overflows, past MAX_EPSILON
            spent = float(one.self_compose(count).get_epsilon_for_delta(delta))
        return spent if spent <= MAX_EPSILON else math.inf

    return [epsilon(count) if count else 0.0 for count in steps]


def max_true_positive_rates(
    entries: Sequence[LedgerEntry], false_positive_rates: Sequence[float]
) -> list[float]:
    """Most that any attack on this very mechanism can detect at each rate of false positives.

    The lower envelope of `accounting.max_true_positive_rate` over the pairs (epsilon, delta) that
    the mechanism satisfies: nowhere above that of a single pair. No entries leave only guessing.
    """
    rates = np.asarray(false_positive_rates, dtype=np.float64)
    if not ((rates >= 0) & (rates <= 1)).all():  # false for NaN too
        raise ValueError(f"Expected false_positive_rates={false_positive_rates} in [0, 1].")
    if not entries:
        return [float(rate) for rate in rates]
    pairs = _pairs(tuple(entries))
    if pairs is None:
        return [1.0] * len(rates)
    epsilons_E1, deltas_E1 = (side[:, None] for side in pairs)
    slopes_E1 = np.exp(epsilons_E1)
    few = slopes_E1 * rates + deltas_E1
    many = 1 - (1 - deltas_E1 - rates) / slopes_E1
    best = np.minimum(few, many).min(axis=0).clip(rates, 1)
    return [float(rate) for rate in best]


@lru_cache(maxsize=64)
def _pairs(entries: tuple[LedgerEntry, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """Epsilons from 0 on, evenly spaced, with their deltas; None where nothing is bounded."""
    if any(entry.noise_multiplier < MIN_NOISE for entry in entries):
        return None
    with np.errstate(over="ignore"):
        losses = _composed(entries, _interval(entries))
        last = float(losses.get_epsilon_for_delta(_LEAST_DELTA))
        if last > MAX_EPSILON:
            return None
        epsilons_E = np.linspace(0, last, _TANGENTS)
        return epsilons_E, np.asarray(losses.get_delta_for_epsilon(epsilons_E.tolist()))


def _interval(entries: Sequence[LedgerEntry]) -> float:
    """A grid on which rounding adds little to this run's epsilon."""
    with np.errstate(over="ignore"):
        rough = float(_composed(entries, _COARSE).get_epsilon_for_delta(_ROUGH_DELTA))
    steps = sum(entry.steps for entry in entries)
    return min(max(rough / (500 * math.sqrt(steps)), _FINE), _COARSE)


def _composed(entries: Sequence[LedgerEntry], interval: float) -> PrivacyLossDistribution:
    first, *others = [_one_step(e, interval).self_compose(int(e.steps)) for e in entries]
    for other in others:
        first = first.compose(other)
    return first


def _one_step(entry: LedgerEntry, interval: float) -> PrivacyLossDistribution:
    return _losses_of_step(float(entry.sampling_rate), float(entry.noise_multiplier), interval)


@lru_cache(maxsize=16)
def _losses_of_step(rate: float, noise: float, interval: float) -> PrivacyLossDistribution:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(
        noise,
        sampling_prob=rate,
        value_discretization_interval=interval,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
