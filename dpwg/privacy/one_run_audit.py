"""A lower bound on epsilon from one run: what an attacker's guesses prove. Numbers only, no torch.

Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run", arXiv 2305.08846.
Each of m canary records joins the data by a fair coin of its own. After one run an attacker scores
every canary, guesses "in" for the `k_plus` highest scores and "out" for the `k_minus` lowest, and
abstains from the rest. Too many correct guesses refute the claimed (epsilon, delta).

An audit can catch a broken implementation and never proves a sound one: a bound far below the
claimed epsilon says only that this attacker, with these canaries, found nothing. Numbers of guesses
are chosen before the run; the best of several choices needs `confidence` 1 - (1 - c) / choices
(Bonferroni) to hold with confidence c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats


@dataclass(frozen=True, kw_only=True)
class AuditBound:
    """`correct` of `guesses` about `canaries` refute every (e, delta)-DP with e below `epsilon`.

    The chance that an audit refutes a guarantee that holds is 1 - `confidence` at most.
    """

    epsilon: float
    delta: float
    confidence: float
    canaries: int
    guesses: int
    correct: int


def audit_guesses(
    scores_M: NDArray[np.float64],
    included_M: NDArray[np.bool_],
    *,
    k_plus: int,
    k_minus: int,
    delta: float,
    confidence: float = 0.95,
) -> AuditBound:
    """What one run's scores prove. Raises ValueError like the two functions that it joins."""
    correct = correct_guesses(scores_M, included_M, k_plus=k_plus, k_minus=k_minus)
    counts = {"canaries": len(included_M), "guesses": k_plus + k_minus, "correct": correct}
    epsilon = epsilon_lower_bound(**counts, delta=delta, confidence=confidence)
    return AuditBound(epsilon=epsilon, delta=delta, confidence=confidence, **counts)


def correct_guesses(
    scores_M: NDArray[np.float64], included_M: NDArray[np.bool_], *, k_plus: int, k_minus: int
) -> int:
    """How many guesses are right: "in" for the `k_plus` highest scores, "out" for the lowest.

    A higher score means rather in. Equal scores stand in the order of the canaries, which must not
    depend on the coins. Raises ValueError for NaN, other shapes, or more guesses than canaries.

    >>> correct_guesses(
    ...     np.array([0.1, 3.0, 2.0, -1.0]), np.array([True, True, False, False]),
    ...     k_plus=2, k_minus=1)
    2
    """
    M = len(scores_M)
    if (scores_M.shape, included_M.shape) != ((M,), (M,)) or np.isnan(scores_M).any():
        raise ValueError("Expected a score, no NaN, and an inclusion for each canary.")
    if min(k_plus, k_minus) < 0 or k_plus + k_minus > M:
        raise ValueError(f"Expected k_plus={k_plus} and k_minus={k_minus} of {M} canaries.")
    order_M = np.argsort(scores_M, kind="stable")
    out_M, in_M = order_M[:k_minus], order_M[M - k_plus :]
    return int((~included_M[out_M]).sum() + included_M[in_M].sum())


def guesses_p_value(
    *, epsilon: float, canaries: int, guesses: int, correct: int, delta: float
) -> float:
    """Most probability that an (epsilon, delta)-DP run allows `correct` right guesses or more.

    With W ~ Binomial(guesses, e^epsilon / (e^epsilon + 1)) and P(v) = Pr[W >= v] it is

        P(correct) + 2 canaries delta max_i (P(correct - i) - P(correct)) / i,  i = 1, 2, ...

    W is how often randomized response is guessed; delta gives away 2 delta of every canary at most,
    2 canaries delta right guesses in expectation, and the maximum is the worst way to spread that
    expectation over the chance to be i guesses short. Source: the main theorem of arXiv 2305.08846
    and its Appendix D. Raises ValueError for counts that cannot be.
    """
    if not (0 <= correct <= guesses <= canaries and 0 <= delta < 1 and 0 <= epsilon < math.inf):
        raise ValueError(
            f"Expected 0 <= correct={correct} <= guesses={guesses} <= canaries={canaries}, "
            f"delta={delta} in [0, 1) and epsilon={epsilon} in [0, inf)."
        )
    rate = 1 / (1 + math.exp(-epsilon))
    chance = float(stats.binom.sf(correct - 1, guesses, rate))
    if delta == 0 or correct == 0:
        return chance
    short_I = np.arange(1, correct + 1)
    within_I = stats.binom.pmf(correct - short_I, guesses, rate).cumsum()
    return min(1.0, chance + 2 * canaries * delta * float((within_I / short_I).max()))


def epsilon_lower_bound(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95
) -> float:
    """Greatest epsilon that the guesses refute, `guesses_p_value` <= 1 - confidence; 0.0 if none.

    Refuting one epsilon refutes all smaller ones, whose guarantees imply it: whichever refuted
    epsilon the bisection ends at is a valid bound. Raises ValueError for values out of range.

    >>> round(epsilon_lower_bound(canaries=1000, guesses=100, correct=75, delta=1e-4), 3)
    0.673
    """
    if not 0 < confidence < 1:
        raise ValueError(f"Expected confidence={confidence} in (0, 1); 0.95 is usual.")

    def refuted(epsilon: float) -> bool:
        p_value = guesses_p_value(
            epsilon=epsilon, canaries=canaries, guesses=guesses, correct=correct, delta=delta
        )
        return p_value <= 1 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
