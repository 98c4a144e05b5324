"""The curves against closed forms and against the figures that are shown."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from test_accounting import DELTA, analytic_gaussian_epsilon, ledger_of, spent

from dpwg.privacy.accounting import Ledger
from dpwg.privacy.curves import (
    doubt_about,
    epsilon_over_steps,
    explain,
    max_true_positive_rate,
    max_true_positive_rates,
)

RATES = np.geomspace(1e-6, 1, 60)


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (0.5, 1), (4.0, 9), (20.0, 100)])
def test_full_batches_leave_the_gaussian_trade_off(noise, steps):
    """Dong, Roth & Su 2022: best power Phi(Phi^-1(a) + mu) with mu = sqrt(steps) / noise."""
    mu = math.sqrt(steps) / noise
    exact = norm.cdf(norm.ppf(RATES) + mu)
    found = np.array(max_true_positive_rates(ledger_of((1.0, noise, steps)), RATES))
    assert (found >= exact * (1 - 1e-6)).all()
    np.testing.assert_allclose(found, exact, atol=2e-3)
    assert (found / exact)[RATES < 1e-2].max() < 1.02  # on an ROC's log axes the ratio counts
    epsilon = analytic_gaussian_epsilon(mu)
    pair = [max_true_positive_rate(epsilon, DELTA, rate) for rate in RATES]
    assert (exact <= np.array(pair) + 1e-12).all()


def test_no_pair_allows_less_than_the_mechanism():
    found = max_true_positive_rates(ledger_of((0.02, 0.8, 60)), RATES)
    for delta in (1e-8, 1e-3):
        epsilon = spent(0.02, 0.8, 60, delta)
        bound = [max_true_positive_rate(epsilon, delta, rate) for rate in RATES]
        assert (np.array(found) <= np.array(bound) * 1.01 + 1e-9).all()
    assert (np.array(found) >= RATES).all()
    assert found == sorted(found)


def test_nothing_seen_leaves_guessing_and_no_noise_no_bound():
    assert max_true_positive_rates(Ledger(), RATES) == RATES.tolist()
    for run in ((0.02, 0.0, 1), (1.0, 0.1, 500), (1.0, 0.1, 100_000)):
        assert max_true_positive_rates(ledger_of(run), RATES) == [1.0] * len(RATES)


@pytest.mark.parametrize(
    ("epsilon", "rate", "most"),
    [
        (math.log(3), 0.25, 0.75),  # randomized response that tells the truth three times in four
        (math.log(3), 0.75, 11 / 12),
        (0.0, 0.3, 0.3),
        (5000.0, 0.01, 1.0),
        (None, 0.01, 1.0),
    ],
)
def test_the_bound_of_a_pair(epsilon, rate, most):
    assert max_true_positive_rate(epsilon, 0.0, rate) == pytest.approx(most)


def test_the_explanation_follows_the_ledger_s_own_curve():
    """The checkpoint of faces with epsilon 10: as a pair it would say "at most 100 %"."""
    assert "24.9 %" in explain(ledger_of((0.08192, 0.8480416525307976, 160)))
    assert "no sensitive record" in explain(Ledger())
    assert "no bound" in explain(ledger_of((0.02, 0.0, 1)))
    tiny = ledger_of((1e-7, 1.0, 1))  # epsilon rounds to 0, yet it did see records
    assert tiny.pld_epsilon(1e-6) == 0
    assert "at most 1" in explain(tiny)


def test_a_delta_near_one_over_the_records_is_doubted():
    assert doubt_about(1e-5, records=10_000) == ""
    assert "1e-05" in doubt_about(5e-5, records=10_000)


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.02, 0.7, 45), (0.02, 10.0, 5_000)])
def test_epsilon_over_steps_meets_the_figure_to_show(rate, noise, steps):
    counts = [0, 1, steps // 2, steps]
    found = epsilon_over_steps(sampling_rate=rate, noise_multiplier=noise, delta=1e-5, steps=counts)
    assert found == pytest.approx([spent(rate, noise, count) for count in counts], rel=0.01)
    assert found == sorted(found)


def test_epsilon_without_noise_is_no_bound_and_bad_values_are_refused():
    good = {"sampling_rate": 0.1, "noise_multiplier": 0.0, "delta": 1e-5, "steps": [0, 5]}
    assert epsilon_over_steps(**good) == [0.0, math.inf]
    for change in ({"delta": 0.0}, {"delta": math.nan}, {"sampling_rate": 2.0}):
        with pytest.raises(ValueError, match=f"{next(iter(change))}="):
            epsilon_over_steps(**good | change)
