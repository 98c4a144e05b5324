"""The curves against closed forms and against the figures that are shown."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from dpwg.privacy.accounting import LedgerEntry, max_true_positive_rate, pld_epsilon
from dpwg.privacy.curves import epsilon_over_steps, max_true_positive_rates

RATES = [float(rate) for rate in np.geomspace(1e-4, 1, 40)]


def run(rate: float, noise: float, steps: int) -> LedgerEntry:
    return LedgerEntry(sampling_rate=rate, noise_multiplier=noise, steps=steps)


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (4.0, 9), (20.0, 100)])
def test_full_batches_leave_the_gaussian_trade_off(noise, steps):
    """Dong, Roth & Su 2022: best power Phi(Phi^-1(a) + mu) with mu = sqrt(steps) / noise."""
    exact = norm.cdf(norm.ppf(RATES) + math.sqrt(steps) / noise)
    found = np.array(max_true_positive_rates([run(1.0, noise, steps)], RATES))
    assert (found >= exact - 1e-9).all()
    np.testing.assert_allclose(found, exact, atol=2e-3)


@pytest.mark.parametrize(("noise", "steps"), [(0.5, 1), (4.0, 9)])
def test_few_false_positives_leave_no_less_than_the_gaussian_trade_off(noise, steps):
    """On the log axes of an ROC what counts is the ratio."""
    rates = [float(rate) for rate in np.geomspace(1e-6, 1e-2, 20)]
    exact = norm.cdf(norm.ppf(rates) + math.sqrt(steps) / noise)
    ratio = np.array(max_true_positive_rates([run(1.0, noise, steps)], rates)) / exact
    assert ratio.min() >= 1 - 1e-6
    assert ratio.max() < 1.02


def test_no_pair_allows_less_than_the_mechanism():
    entry = run(0.02, 0.8, 60)
    found = max_true_positive_rates([entry], RATES)
    for delta in (1e-8, 1e-5, 1e-3):
        epsilon = pld_epsilon(sampling_rate=0.02, noise_multiplier=0.8, steps=60, delta=delta)
        bound = [max_true_positive_rate(epsilon, delta, rate) for rate in RATES]
        assert (np.array(found) <= np.array(bound) * 1.01 + 1e-9).all()
    assert (np.array(found) >= RATES).all()
    assert found == sorted(found)


def test_parts_of_a_ledger_compose():
    parts = [run(0.02, 1.0, 30), run(0.05, 2.0, 10), run(0.02, 1.0, 30)]
    merged = [run(0.02, 1.0, 60), run(0.05, 2.0, 10)]
    np.testing.assert_allclose(
        max_true_positive_rates(parts, RATES), max_true_positive_rates(merged, RATES), atol=1e-6
    )


def test_nothing_seen_leaves_guessing_and_no_noise_no_bound():
    assert max_true_positive_rates([], RATES) == RATES
    assert max_true_positive_rates([run(0.02, 0.0, 1)], RATES) == [1.0] * len(RATES)
    assert max_true_positive_rates([run(1.0, 0.1, 500)], RATES) == [1.0] * len(RATES)
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="false_positive_rates"):
            max_true_positive_rates([], [rate])


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.02, 0.7, 45), (0.02, 10.0, 5_000)])
def test_epsilon_over_steps_meets_the_figure_to_show(rate, noise, steps):
    counts = [0, 1, steps // 2, steps]
    found = epsilon_over_steps(sampling_rate=rate, noise_multiplier=noise, delta=1e-5, steps=counts)
    shown = [
        pld_epsilon(sampling_rate=rate, noise_multiplier=noise, steps=count, delta=1e-5)
        for count in counts
    ]
    assert found == pytest.approx(shown, rel=0.01)
    assert found == sorted(found)


def test_epsilon_without_noise_is_no_bound_and_bad_values_are_refused():
    good = {"sampling_rate": 0.1, "noise_multiplier": 0.0, "delta": 1e-5, "steps": [0, 5]}
    assert epsilon_over_steps(**good) == [0.0, math.inf]
    changes = ({"delta": 0.0}, {"delta": math.nan}, {"sampling_rate": 2.0}, {"steps": [-1]})
    for change in changes:
        with pytest.raises(ValueError, match=f"Expected {next(iter(change))}="):
            epsilon_over_steps(**good | change)
