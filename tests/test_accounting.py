"""Epsilon against closed forms, published figures and other accountants; plans and ledgers."""

import json
import math
import subprocess
import sys
import time

import dp_accounting as dp
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from dpwg.privacy import accounting
from dpwg.privacy.accountants import MAX_NOISE, MIN_NOISE
from dpwg.privacy.accounting import (
    MAX_STEPS,
    Epsilons,
    Ledger,
    LedgerEntry,
    PrivacyPlan,
    check_delta,
    compose,
    default_delta,
    epsilon_text,
    percent_text,
    pld_epsilon,
    rounded_up,
)

DELTA = 1e-5
KIND = {"sampling_rate": 0.02, "noise_multiplier": 1.0}


def ledger_of(*runs: tuple[float, float, int]) -> Ledger:
    names = ("sampling_rate", "noise_multiplier", "steps")
    return Ledger(entries=[LedgerEntry(**dict(zip(names, run, strict=True))) for run in runs])


def spent(rate: float, noise: float, steps: int, delta: float = DELTA) -> float:
    return pld_epsilon(sampling_rate=rate, noise_multiplier=noise, steps=steps, delta=delta)


def plain_dp_accounting(rate: float, noise: float, steps: int, delta: float = DELTA) -> float:
    accountant = PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    step = dp.GaussianDpEvent(noise)
    accountant.compose(step if rate == 1 else dp.PoissonSampledDpEvent(rate, step), steps)
    return accountant.get_epsilon(delta)


def analytic_gaussian_epsilon(mu: float) -> float:
    """Balle & Wang 2018, theorem 8, for unsampled Gaussian steps: mu^2 sums steps / noise^2."""

    def excess(eps: float) -> float:
        return norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu) - DELTA

    return brentq(excess, 0.0, 100.0, xtol=1e-12)


# Calibration


@pytest.mark.parametrize(
    ("records", "batch", "steps", "target", "noise"),
    [
        (24_000, 1024, 250, 10, 0.7016),
        (60_000, 2048, 250, 1, 2.23),
        (50, 1, 250, 100.0, 0.2432),
        (10, 10, 1, 100.0, MIN_NOISE),  # sampling alone suffices
    ],
)
def test_calibration_gives_the_reference_noise(records, batch, steps, target, noise):
    sizes = {"records": records, "batch_size": batch, "steps": steps, "delta": DELTA}
    plan = PrivacyPlan.calibrated(**sizes, max_grad_norm=1.0, target_epsilon=target)
    assert plan.noise_multiplier == pytest.approx(noise, rel=3e-3)
    assert plan.epsilons().pld <= target
    assert plan.epsilons().pld >= 0.998 * target or noise == MIN_NOISE


@settings(max_examples=3, deadline=None)
@given(batch=st.integers(50, 500), steps=st.integers(50, 300), target=st.floats(0.1, 0.5))
def test_calibration_never_overshoots_and_wastes_little(batch, steps, target):
    sizes = {"records": 1000, "batch_size": batch, "steps": steps, "delta": DELTA}
    plan = PrivacyPlan.calibrated(**sizes, max_grad_norm=1.0, target_epsilon=target)
    rate, noise = plan.sampling_rate, plan.noise_multiplier
    assert plain_dp_accounting(rate, noise, steps) <= target
    assert plain_dp_accounting(rate, noise / 1.003, steps) > target


# Accountants


@pytest.mark.parametrize(
    "runs", [[(10.0, 250)], [(0.5, 1)], [(50.0, 10)], [(1.0, 1), (2.0, 1)], [(3.0, 4), (3.0, 5)]]
)
def test_full_batches_match_the_closed_form_alone_and_composed(runs):
    exact = analytic_gaussian_epsilon(math.sqrt(sum(steps / noise**2 for noise, steps in runs)))
    found = compose(ledger_of((1.0, *run)) for run in runs).epsilons(DELTA)
    assert found.pld == pytest.approx(exact, rel=1e-4)
    assert found.pld >= exact * (1 - 1e-9)
    assert found.prv == pytest.approx(exact, rel=1e-2)
    assert exact < found.rdp < 1.2 * exact


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta", "slack"),
    [
        (0.001, 0.8, 1, 1e-6, 1e-9),
        (0.02, 0.7, 45, 1e-5, 1e-9),
        (0.3, 5.0, 2000, 1e-9, 1e-9),
        (1.0, 20.0, 50, 1e-3, 1e-9),
        (0.9, 2.0, 250, 1e-5, 2e-4),  # above epsilon 50 the grid is coarse
    ],
)
def test_pld_is_what_dp_accounting_gives(rate, noise, steps, delta, slack):
    exact = plain_dp_accounting(rate, noise, steps, delta)
    assert exact * (1 - 1e-9) <= spent(rate, noise, steps, delta) <= exact * (1 + slack)


@settings(max_examples=4)
@given(rate=st.floats(0.005, 0.3), noise=st.floats(0.7, 5.0), steps=st.integers(20, 1000))
def test_three_accountants_agree_at_any_usual_settings(rate, noise, steps):
    found = ledger_of((rate, noise, steps)).epsilons(DELTA)
    assert found.prv == pytest.approx(found.pld, rel=0.01)
    assert found.rdp >= found.pld >= spent(rate, noise, steps // 2)


def test_prv_beyond_its_reach_is_nan_and_not_a_number():
    found = ledger_of((0.02, 0.1, 100)).epsilons(DELTA)
    assert math.isnan(found.prv)
    assert found.pld < found.rdp < math.inf


def test_epsilon_does_not_fall_where_the_grid_changes():
    assert spent(1.0, 0.86, 32) < 50 < spent(1.0, 0.86, 33) < spent(1.0, 0.86, 34)
    assert spent(0.01, 0.289, 50) <= spent(0.01, 0.288, 50)


@pytest.mark.parametrize(
    "runs",
    [[(0.02, 0.0, 1)], [(0.02, 0.09, 1)], [(1.0, 0.1, MAX_STEPS)], [(0.02, 5.0, 1), (0.02, 0, 1)]],
)
def test_no_noise_and_far_too_many_steps_are_no_bound(runs):
    assert ledger_of(*runs).epsilons(DELTA) == Epsilons(pld=math.inf, prv=math.inf, rdp=math.inf)
    assert Ledger().epsilons(DELTA) == Epsilons(pld=0.0, prv=0.0, rdp=0.0)


def test_releases_together_spend_less_than_the_sum_of_their_epsilons():
    """The three private checkpoints of faces, of epsilon 1, 3 and 10."""
    faces = [(2.4370844596548165, 48), (1.3579273062129011, 80), (0.8480416525307976, 160)]
    together = compose(ledger_of((0.08192, *run)) for run in faces).pld_epsilon(DELTA)
    assert together == pytest.approx(10.583, abs=1e-3)


# Plans and ledgers


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"delta": 1e-3}, "delta=0.001"),  # one whole record
        ({"delta": 0.0}, "delta=0.0"),
        ({"delta": 1e-12}, "delta=1e-12"),
        ({"batch_size": 1400}, "sampling_rate=1.4"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"steps": 0}, "steps=0"),
        ({"steps": MAX_STEPS + 1}, "steps=100001"),
        ({"noise_multiplier": -1.0}, "noise_multiplier=-1.0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0"),
        ({"max_grad_norm": math.inf}, "max_grad_norm=inf"),
        ({"target_epsilon": 1e-6, "delta": 1e-9}, f"{MAX_NOISE:g}"),
        ({"target_epsilon": 0.0}, "target_epsilon=0.0"),
        ({"target_epsilon": math.nan}, "target_epsilon=nan"),
    ],
)
def test_plan_refuses(change, named):
    sizes = {"records": 1000, "batch_size": 100, "steps": 10, "delta": 1e-4, "max_grad_norm": 1.0}
    calibrated = "target_epsilon" in change
    make = PrivacyPlan.calibrated if calibrated else PrivacyPlan
    noise = {} if calibrated else {"noise_multiplier": 1.0}
    with pytest.raises(ValueError, match=named):
        make(**sizes | noise | change)


def test_no_bound_asked_for_is_no_noise():
    sizes = {"records": 1000, "batch_size": 100, "steps": 10, "delta": 1e-4, "max_grad_norm": 1.0}
    plan = PrivacyPlan.calibrated(**sizes, target_epsilon=math.inf)
    assert (plan.noise_multiplier, plan.epsilons().pld) == (0.0, math.inf)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"sampling_rate": math.nan}, "sampling_rate=nan"),
        ({"sampling_rate": None}, "sampling_rate=None"),
        ({"sampling_rate": 1.1}, "sampling_rate=1.1"),
        ({"noise_multiplier": -0.1}, "noise_multiplier=-0.1"),
        ({"noise_multiplier": "1"}, "noise_multiplier='1'"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"steps": True}, "steps=True"),
        ({"lost": -1}, "lost=-1"),
        ({"extra": 1}, "'extra'"),
    ],
)
def test_a_ledger_entry_is_validated_on_every_way_in(entry, named):
    ledger, bad = Ledger(), KIND | {"steps": 3} | entry
    with pytest.raises(ValueError, match=named):
        Ledger.from_json([bad])
    with pytest.raises((ValueError, TypeError)):
        ledger.record_step(**bad)
    assert ledger.entries == []


@pytest.mark.parametrize("data", [{}, None, "[]", [3], [{"steps": 3}]])
def test_ledger_json_of_another_shape_is_refused(data):
    with pytest.raises(ValueError, match="Expected ledger"):
        Ledger.from_json(data)


@pytest.mark.parametrize(
    "data",
    [
        [KIND | {"steps": 10**8}],
        [KIND | {"steps": 10**12}],
        [KIND | {"steps": MAX_STEPS}] * 2,
        [KIND | {"steps": 9, "lost": MAX_STEPS}],
        [KIND | {"noise_multiplier": 1 + i / 300, "steps": 1} for i in range(300)],
    ],
)
def test_a_ledger_that_would_hang_its_reader_is_refused_at_once(data):
    started = time.perf_counter()
    with pytest.raises(ValueError, match="steps"):
        Ledger.from_json(data)
    assert time.perf_counter() - started < 1


@given(st.integers(2, 10**9))
def test_delta_must_be_below_one_record_in_all_of_them(records: int):
    with pytest.raises(ValueError, match="1/records"):
        check_delta(1 / records, records=records)
    check_delta(math.nextafter(1 / records, 0), records=records)
    check_delta(default_delta(records), records=records)
    assert default_delta(records) == min(0.1 / records, 1e-5)


def test_ledger_merges_equal_steps_counts_lost_ones_apart_and_round_trips():
    ledger = Ledger()
    ledger.record_step(**KIND, steps=0, lost=3)
    assert (ledger.steps, ledger.pld_epsilon(DELTA)) == (0, 0.0)
    for _ in range(5):
        ledger.record_step(**KIND)
    assert ledger.to_json() == [KIND | {"steps": 5, "lost": 3}]
    assert ledger.pld_epsilon(DELTA) == spent(0.02, 1.0, 5)
    assert ledger.begun.pld_epsilon(DELTA) == spent(0.02, 1.0, 8)
    for noise in (2.0, 1.0):
        ledger.record_step(sampling_rate=0.02, noise_multiplier=noise)
    assert [entry.steps for entry in ledger.entries] == [5, 1, 1]
    assert ledger.runs == ((0.02, 1.0, 6), (0.02, 2.0, 1))
    assert Ledger.from_json(json.loads(json.dumps(ledger.to_json()))) == ledger


# What is shown


def test_numbers_alone_do_not_load_torch():
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, accounting.__file__], check=True)


@given(st.floats(1e-9, 700))
@example(0.9993401)
@example(9.99801)
def test_what_is_shown_of_a_bound_never_understates_it(value: float):
    assert value <= rounded_up(value) <= value * 1.0002
    assert value <= float(epsilon_text(value)) <= value * 1.002
    share = value / 700
    shown = float(percent_text(share).removesuffix(" %"))
    assert 100 * share - 1e-13 <= shown <= 100 * share + 0.01 + 1e-9


def test_figures_as_they_are_shown():
    shown = [*map(epsilon_text, (0.9993401, 9.9991, 3.0, 0, None, math.inf))]
    assert shown == ["0.9994", "10", "3", "0", "no bound", "no bound"]
    shown = [*map(percent_text, (0.0272, 0.027201, 0.3, 1.0))]
    assert shown == ["2.72 %", "2.73 %", "30 %", "100 %"]
