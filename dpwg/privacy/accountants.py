"""Epsilon of Poisson-sampled Gaussian steps by three accountants. None loads torch but PRV.

PLD and RDP are dp-accounting's. PRV is Opacus': another algorithm, of other authors.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import warnings
from functools import lru_cache
from typing import Any

import numpy as np

MIN_NOISE = 0.1
"""Less noise than this counts as none: one step at rate 1 already spends epsilon 91.8."""
MAX_NOISE = 2.0**14
MAX_EPSILON = 700.0
"""A greater epsilon is reported as inf: e^709 overflows."""
FINE, COARSE = 1e-4, 1e-2
"""Grids that privacy losses are rounded up to."""

_COARSE_ABOVE, _FINE_WORK, _MOST_LOSS = 50.0, 13.0, 2e4
_ORDERS = [*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 64, 128, 256, 512]
_PRV_POINTS = 2**22
Runs = tuple[tuple[float, float, int], ...]
"""Sampling rate, noise multiplier and steps of each kind of step."""


@lru_cache(maxsize=512)
def pld(runs: Runs, delta: float, interval: float = FINE) -> float:
    """Tight upper bound: losses are rounded up to a grid of 1e-4; above epsilon 50, or where there
    is little noise, to one of 1e-2, which costs about 0.01 % in common runs and spares minutes.
    """
    if not runs or is_unbounded(runs):
        return math.inf if runs else 0.0
    interval = max(interval, finest_grid(runs))
    if interval < COARSE and (coarse := pld(runs, delta, COARSE)) > _COARSE_ABOVE:
        return coarse
    from dp_accounting import NeighboringRelation  # with SciPy behind it: not before it is needed
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, interval)
    with np.errstate(over="ignore"):  # e^709 overflows, past MAX_EPSILON
        epsilon = _epsilon(accountant, runs, delta)
    return epsilon if epsilon <= MAX_EPSILON else math.inf


def finest_grid(runs: Runs) -> float:
    """The grid of losses that is quick enough: work grows with 1/noise^2, and with kinds."""
    return FINE if sum(1 + noise**-2 for _, noise, _ in runs) <= _FINE_WORK else COARSE


def is_unbounded(runs: Runs) -> bool:
    """Whether a step has no noise to speak of, or epsilon is past `MAX_EPSILON` by far.

    A step loses rate / (2 noise^2) at most on average; grids of great losses would fill the memory.
    """
    return (
        any(noise < MIN_NOISE for _, noise, _ in runs)
        or sum(steps * rate / (2 * noise**2) for rate, noise, steps in runs) > _MOST_LOSS
    )


@lru_cache(maxsize=512)
def rdp(runs: Runs, delta: float) -> float:
    """Looser upper bound, and a quick one: each Renyi order gives one, the least counts."""
    if not runs or is_unbounded(runs):
        return math.inf if runs else 0.0
    from dp_accounting.rdp import RdpAccountant

    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)  # orders that do not converge are left out, with a warning each
    try:
        return _epsilon(RdpAccountant(_ORDERS), runs, delta)
    finally:
        absl.setLevel(level)


def _epsilon(accountant: Any, runs: Runs, delta: float) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent

    for rate, noise, steps in runs:
        step = GaussianDpEvent(noise)
        accountant.compose(step if rate == 1 else PoissonSampledDpEvent(rate, step), steps)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=512)
def prv(runs: Runs, delta: float) -> float:
    """Upper bound to 0.1 % of RDP's, or as near as 4 M grid points allow.

    nan where that is not to 5 % (very small noise, very many steps), and where Opacus is not
    installed, as on a machine that only trains.
    """
    if not runs or is_unbounded(runs):
        return math.inf if runs else 0.0
    if importlib.util.find_spec("opacus") is None:
        return math.nan
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv import (
        PoissonSubsampledGaussianPRV,
        compute_safe_domain_size,
    )

    counts, scale = [steps for _, _, steps in runs], rdp(runs, delta)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        half_width = compute_safe_domain_size(
            prvs=[PoissonSubsampledGaussianPRV(rate, noise) for rate, noise, _ in runs],
            max_self_compositions=counts,
            eps_error=0.01,
            delta_error=delta / 1000,
        )
        root = math.sqrt(sum(counts) * math.log(12_000 / delta) / 2)
        error = max(1e-3 * scale, 2 * half_width * root * len(runs) / _PRV_POINTS)
        if half_width > MAX_EPSILON or error > min(0.05 * scale, 0.5):
            return math.nan
        accountant = PRVAccountant()
        accountant.history = [(noise, rate, steps) for rate, noise, steps in runs]
        try:
            epsilon = float(accountant.get_epsilon(delta, eps_error=error))
        except (RuntimeError, ValueError):  # its own refusals: moments differ, delta too small
            return math.nan
    return max(epsilon, 0.0) if math.isfinite(epsilon) else math.nan


def least_noise(rate: float, steps: int, delta: float, target_epsilon: float) -> float:
    """Least noise multiplier in [MIN_NOISE, MAX_NOISE] with PLD epsilon <= `target_epsilon`.

    Never overshoots; either spends at least 99.9 % of the target, or is within 0.1 % of the least
    such noise. A coarse grid guesses, so that few of the slow fine ones are asked for:
    `dp_accounting.calibrate_dp_mechanism` takes two to five times as long. Raises ValueError for a
    target below what PLD can resolve.

    >>> noise = least_noise(0.1, 100, 1e-5, 2.0)
    >>> 1.998 < pld(((0.1, noise, 100),), 1e-5) <= 2.0
    True
    """
    if not 0 < target_epsilon < math.inf:
        raise ValueError(f"Expected target_epsilon={target_epsilon!r} in (0, inf).")

    def search(interval: float, *, start: float, factor: float, slack: float) -> float:
        def spent(noise: float) -> float:
            return pld(((rate, noise, steps),), delta, interval)

        low = high = start
        while spent(high) > target_epsilon:
            if high >= MAX_NOISE:
                raise ValueError(
                    f"Expected target_epsilon={target_epsilon!r} reachable with noise <= "
                    f"{MAX_NOISE:g}; raise the target, or lower sampling_rate or steps."
                )
            low, high, factor = high, min(high * factor, MAX_NOISE), factor**2
        while MIN_NOISE < low == high and spent(high) < (1 - slack) * target_epsilon:
            low, factor = max(low / factor, MIN_NOISE), factor**2
            high = high if spent(low) > target_epsilon else low
        while high > (1 + slack) * low and spent(high) < (1 - slack) * target_epsilon:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if spent(middle) > target_epsilon else (low, middle)
        return high

    # Rounding to a grid adds about interval * sqrt(steps) to epsilon.
    coarse = min(max(target_epsilon / (50 * math.sqrt(steps)), FINE), COARSE)
    guess = search(coarse, start=1.0, factor=2.0, slack=2e-4)
    return search(FINE, start=guess, factor=1.0005, slack=1e-3)
