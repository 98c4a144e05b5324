"""Epsilon against closed forms, published figures and other accountants; plans and ledgers."""

import json
import math
import subprocess
import sys
import time

import dp_accounting as dp
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from dpwg.privacy import accounting
from dpwg.privacy.accountants import MAX_NOISE, MIN_NOISE, rdp
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


def ledger_of(*runs: tuple[float, float, int]) -> Ledger:
    return Ledger(
        entries=[
            LedgerEntry(sampling_rate=rate, noise_multiplier=noise, steps=steps)
            for rate, noise, steps in runs
        ]
    )


def spent(rate: float, noise: float, steps: int, delta: float = DELTA) -> float:
    return pld_epsilon(sampling_rate=rate, noise_multiplier=noise, steps=steps, delta=delta)


def plain_dp_accounting(rate: float, noise: float, steps: int, delta: float = DELTA) -> float:
    accountant = PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    step = dp.GaussianDpEvent(noise)
    accountant.compose(step if rate == 1 else dp.PoissonSampledDpEvent(rate, step), steps)
    return accountant.get_epsilon(delta)


def one_step_epsilon(rate: float, noise: float) -> float:
    """Epsilon of one subsampled step, where the hockey-stick divergence has a closed form.

    P = (1 - rate) N(0, noise^2) + rate N(1, noise^2) against Q = N(0, noise^2), both ways: log P/Q
    rises with the output, so each divergence is that of the tail beyond one threshold.
    """

    def threshold(eps: float) -> float:
        return noise**2 * math.log((math.exp(eps) - 1 + rate) / rate) + 0.5

    def excess(eps: float) -> float:
        x = threshold(eps)
        q, p = norm.sf(x / noise), norm.sf((x - 1) / noise)
        removed, added = (1 - rate) * q + rate * p - math.exp(eps) * q, 0.0
        if math.exp(-eps) > 1 - rate:
            x = threshold(-eps)
            q, p = norm.cdf(x / noise), norm.cdf((x - 1) / noise)
            added = q - math.exp(eps) * ((1 - rate) * q + rate * p)
        return max(removed, added) - DELTA

    return brentq(excess, 1e-9, 30.0, xtol=1e-12)


def analytic_gaussian_epsilon(noise: float, steps: int) -> float:
    """Balle & Wang 2018, theorem 8, for `steps` unsampled Gaussian steps of sensitivity 1."""
    mu = math.sqrt(steps) / noise

    def excess(eps: float) -> float:
        return norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu) - DELTA

    return brentq(excess, 0.0, 100.0, xtol=1e-12)


# Calibration


@pytest.mark.parametrize(
    ("records", "batch", "steps", "target", "noise"),
    [
        (60_000, 1024, 250, 1, 1.3176),
        (24_000, 1024, 250, 3, 1.2408),
        (24_000, 1024, 250, 10, 0.7016),
        (60_000, 2048, 250, 1, 2.23),
        (50, 1, 250, 100.0, 0.2432),
        (10, 10, 1, 100.0, MIN_NOISE),  # sampling alone suffices
    ],
)
def test_calibration_gives_the_reference_noise(records, batch, steps, target, noise):
    plan = PrivacyPlan.calibrated(
        records=records,
        batch_size=batch,
        steps=steps,
        delta=DELTA,
        max_grad_norm=1.0,
        target_epsilon=target,
    )
    assert plan.noise_multiplier == pytest.approx(noise, rel=3e-3)
    assert plan.epsilons().pld <= target
    assert plan.epsilons().pld >= 0.998 * target or noise == MIN_NOISE


@settings(max_examples=3, deadline=None)
@given(rate=st.floats(0.05, 0.5), steps=st.integers(50, 300), target=st.floats(0.1, 0.5))
def test_calibration_never_overshoots_and_wastes_little(rate, steps, target):
    plan = PrivacyPlan.calibrated(
        records=1000,
        batch_size=round(1000 * rate),
        steps=steps,
        delta=DELTA,
        max_grad_norm=1.0,
        target_epsilon=target,
    )
    rate, noise = plan.sampling_rate, plan.noise_multiplier
    assert plain_dp_accounting(rate, noise, steps) <= target
    assert plain_dp_accounting(rate, noise / 1.003, steps) > target


# Accountants


@pytest.mark.parametrize(("noise", "steps"), [(10.0, 250), (1.0, 1), (0.5, 1), (50.0, 10)])
def test_full_batches_match_the_closed_form(noise, steps):
    exact = analytic_gaussian_epsilon(noise, steps)
    found = ledger_of((1.0, noise, steps)).epsilons(DELTA)
    assert found.pld == pytest.approx(exact, rel=1e-4)
    assert found.pld >= exact * (1 - 1e-9)
    assert found.prv == pytest.approx(exact, rel=1e-2)
    assert found.rdp > exact


@pytest.mark.parametrize(
    ("rate", "noise"), [(0.02, 1.0), (0.02, 0.5), (0.2, 0.5), (0.5, 2.0), (0.9, 3.0), (1.0, 1.0)]
)
def test_one_sampled_step_matches_its_closed_form(rate: float, noise: float):
    exact = one_step_epsilon(rate, noise)
    assert exact * (1 - 1e-9) <= spent(rate, noise, 1) <= exact * (1 + 1e-4)


@pytest.mark.parametrize(
    ("rate", "noise", "delta"), [(1.0, math.sqrt(3), 0.126936), (0.2, 0.5, 0.15594)]
)
def test_three_steps_spend_what_the_tests_of_dp_accounting_say(rate, noise, delta):
    assert spent(rate, noise, 3, delta) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta"),
    [(0.001, 0.8, 1, 1e-6), (0.02, 0.7, 45, 1e-5), (0.3, 5.0, 2000, 1e-9), (1.0, 20.0, 50, 1e-3)],
)
def test_pld_is_what_dp_accounting_gives(rate, noise, steps, delta):
    exact = plain_dp_accounting(rate, noise, steps, delta)
    assert spent(rate, noise, steps, delta) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    ("noise", "epochs", "published"), [(1.12, 60, 2.92), (0.6, 30, 9.74), (1.2, 10, 1.20)]
)
def test_published_mnist_runs_spend_less_than_their_first_analysis_said(noise, epochs, published):
    """The table of TensorFlow Privacy's tutorial: RDP by the looser conversion of its time."""
    run = (256 / 60_000, noise, epochs * 60_000 // 256)
    assert 0.65 * published < spent(*run) < rdp((run,), DELTA) < published


@settings(max_examples=4)
@given(rate=st.floats(0.005, 0.3), noise=st.floats(0.7, 5.0), steps=st.integers(20, 1000))
def test_three_accountants_agree_at_any_usual_settings(rate, noise, steps):
    found = ledger_of((rate, noise, steps)).epsilons(DELTA)
    assert found.prv == pytest.approx(found.pld, rel=0.01)
    assert found.rdp >= found.pld


@settings(max_examples=6)
@given(
    rate=st.floats(-3, 0).map(lambda x: 10**x),
    noise=st.floats(0.5, 50.0),
    steps=st.lists(st.integers(1, 1000), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_epsilon_never_falls_as_steps_grow_and_rdp_is_never_below_it(rate, noise, steps):
    fewer, more = (spent(rate, noise, count) for count in steps)
    assert fewer <= more
    rounded = 1e-4 * math.sqrt(steps[1])  # by PLD's grid, of which RDP has none
    assert rdp(((rate, noise, steps[1]),), DELTA) >= more - rounded


def test_prv_beyond_its_reach_is_nan_and_not_a_number():
    found = ledger_of((0.02, 0.1, 100)).epsilons(DELTA)
    assert math.isfinite(found.pld)
    assert math.isnan(found.prv)
    assert found.rdp > found.pld


def test_epsilon_grows_with_steps_rate_and_less_noise():
    assert spent(0.02, 3.0, 0) == 0.0
    found = [spent(0.02, 3.0, steps) for steps in (1, 50, 51, 500)]
    assert found == sorted(set(found))
    assert min(spent(0.03, 3.0, 50), spent(0.02, 2.9, 50)) > found[1]


def test_epsilon_does_not_fall_where_the_grid_changes():
    steps = [spent(1.0, 0.86, steps) for steps in (32, 33, 34)]
    assert steps == sorted(steps)
    assert steps[0] < 50 < steps[1]
    assert spent(0.01, 0.289, 50) <= spent(0.01, 0.288, 50)


def test_above_50_the_coarse_grid_stays_a_close_upper_bound():
    fine = plain_dp_accounting(0.9, 2.0, 250)
    assert fine <= spent(0.9, 2.0, 250) <= fine * 1.0002


@pytest.mark.parametrize("run", [(0.02, 0.0, 1), (0.02, 0.09, 1), (1.0, 0.1, MAX_STEPS)])
def test_no_noise_and_far_too_many_steps_are_no_bound(run):
    found = ledger_of(run).epsilons(DELTA)
    assert (found.pld, found.prv, found.rdp) == (math.inf, math.inf, math.inf)


@pytest.mark.parametrize(
    "data",
    [
        [{"sampling_rate": 0.02, "noise_multiplier": 1.0, "steps": 10**8}],
        [{"sampling_rate": 0.02, "noise_multiplier": 1.0, "steps": 10**12}],
        [{"sampling_rate": 0.02, "noise_multiplier": 1.0, "steps": MAX_STEPS}] * 2,
        [{"sampling_rate": 0.02, "noise_multiplier": 1.0, "steps": 9, "lost": MAX_STEPS}],
        [{"sampling_rate": 0.02, "noise_multiplier": 1 + i / 300, "steps": 1} for i in range(300)],
    ],
)
def test_a_ledger_that_would_hang_its_reader_is_refused_at_once(data):
    started = time.perf_counter()
    with pytest.raises(ValueError, match="steps"):
        Ledger.from_json(data)
    assert time.perf_counter() - started < 1


# Plans


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": 1e-3}, "one whole record"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"delta": 1e-12}, "delta=1e-12"),
        ({"batch_size": 1400}, "sampling_rate=1.4"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"records": 1000.0}, r"records=1000\.0"),
        ({"steps": 0}, "steps=0"),
        ({"steps": True}, "steps=True"),
        ({"steps": MAX_STEPS + 1}, "steps=100001"),
        ({"noise_multiplier": -1.0}, "noise_multiplier=-1.0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0"),
        ({"max_grad_norm": math.inf}, "max_grad_norm=inf"),
        ({"target_epsilon": 1e-6, "delta": 1e-9}, f"{MAX_NOISE:g}"),
        ({"target_epsilon": 0.0}, "target_epsilon=0.0"),
        ({"target_epsilon": math.inf}, "target_epsilon=inf"),
    ],
)
def test_plan_refuses(change, message):
    good = {"records": 1000, "batch_size": 100, "steps": 10, "delta": 1e-4, "max_grad_norm": 1.0}
    make = PrivacyPlan
    if "target_epsilon" in change:
        make = PrivacyPlan.calibrated
    else:
        good["noise_multiplier"] = 1.0
    with pytest.raises(ValueError, match=message):
        make(**good | change)


@given(st.integers(2, 10**9))
def test_delta_must_be_below_one_record_in_all_of_them(records: int):
    with pytest.raises(ValueError, match="publishing one whole record would count as private"):
        check_delta(1 / records, records=records)
    check_delta(math.nextafter(1 / records, 0), records=records)
    check_delta(default_delta(records), records=records)


def test_the_usual_delta_is_a_tenth_of_one_over_the_records_and_1e_5_at_most():
    deltas = [default_delta(records) for records in (1, 200, 10_000, 50_000)]
    assert deltas == pytest.approx([1e-5, 1e-5, 1e-5, 2e-6])


# Ledgers


def test_ledger_merges_equal_steps_and_round_trips():
    ledger = Ledger()
    for noise in (1.0, 1.0, 2.0, 1.0):
        ledger.record_step(sampling_rate=0.02, noise_multiplier=noise)
    assert [entry.steps for entry in ledger.entries] == [2, 1, 1]
    assert ledger.steps == 4
    assert ledger.begun == ledger
    assert Ledger.from_json(json.loads(json.dumps(ledger.to_json()))) == ledger


def test_steps_that_were_begun_and_lost_are_told_and_do_not_count():
    ledger, kind = Ledger(), {"sampling_rate": 0.02, "noise_multiplier": 1.0}
    ledger.record_step(**kind, steps=0, lost=3)
    assert (ledger.steps, ledger.pld_epsilon(DELTA)) == (0, 0.0)
    for _ in range(5):
        ledger.record_step(**kind)
    assert ledger.to_json() == [kind | {"steps": 5, "lost": 3}]
    assert Ledger.from_json(ledger.to_json()) == ledger
    assert ledger.pld_epsilon(DELTA) == spent(0.02, 1.0, 5)
    assert ledger.begun.pld_epsilon(DELTA) == spent(0.02, 1.0, 8)


def test_ledger_of_equal_parts_spends_what_one_run_spends():
    parts = ledger_of((0.02, 1.0, 60), (0.05, 2.0, 1), (0.02, 1.0, 40))
    merged = ledger_of((0.02, 1.0, 100), (0.05, 2.0, 1))
    assert parts.pld_epsilon(DELTA) == merged.pld_epsilon(DELTA)


def test_mixed_ledger_composes_by_all_accountants():
    """Noise 1 and 2 at rate 1 are together one Gaussian step with 1/noise^2 = 1 + 1/4."""
    exact = analytic_gaussian_epsilon(1 / math.sqrt(1.25), 1)
    found = compose([ledger_of((1.0, 1.0, 1)), ledger_of((1.0, 2.0, 1))]).epsilons(DELTA)
    assert found.pld == pytest.approx(exact, rel=1e-4)
    assert found.prv == pytest.approx(exact, rel=1e-2)
    assert exact < found.rdp < 1.2 * exact


def test_releases_together_spend_less_than_the_sum_of_their_epsilons():
    """The three private checkpoints of faces, of epsilon 1, 3 and 10."""
    rate = 0.08192
    faces = [(rate, 2.4370844596548165, 48), (rate, 1.3579273062129011, 80)]
    faces.append((rate, 0.8480416525307976, 160))
    together = compose(ledger_of(run) for run in faces).pld_epsilon(DELTA)
    assert together == pytest.approx(10.583, abs=1e-3)


def test_one_step_without_noise_voids_the_ledger_and_an_empty_one_spends_nothing():
    assert Ledger().epsilons(DELTA) == Epsilons(pld=0.0, prv=0.0, rdp=0.0)
    assert ledger_of((0.02, 5.0, 1)).pld_epsilon(DELTA) < 1
    assert ledger_of((0.02, 5.0, 1), (0.02, 0.0, 1)).pld_epsilon(DELTA) == math.inf


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"sampling_rate": math.nan}, "sampling_rate=nan"),
        ({"sampling_rate": None}, "sampling_rate=None"),
        ({"sampling_rate": 1.1}, "sampling_rate=1.1"),
        ({"noise_multiplier": -0.1}, "noise_multiplier=-0.1"),
        ({"noise_multiplier": "1"}, "noise_multiplier='1'"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"lost": -1}, "lost=-1"),
        ({"extra": 1}, "'extra'"),
    ],
)
def test_ledger_json_is_validated(entry, message):
    good = {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 3}
    assert Ledger.from_json([good]).steps == 3
    with pytest.raises(ValueError, match=message):
        Ledger.from_json([good | entry])
    ledger = Ledger()
    with pytest.raises((ValueError, TypeError)):
        ledger.record_step(**good | entry)
    assert ledger.entries == []


@pytest.mark.parametrize("data", [{}, None, "[]", [3], [{"steps": 3}]])
def test_ledger_json_of_another_shape_is_refused(data):
    with pytest.raises(ValueError, match="Expected ledger"):
        Ledger.from_json(data)


# What is shown


def test_numbers_alone_do_not_load_torch():
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, accounting.__file__], check=True)


def test_what_is_shown_of_a_bound_never_understates_it():
    for value in (0.0, 1.0, 0.12345, 0.9993401, 1.8980624827, 9.99801, 263.80625482, 1e-7):
        assert value <= rounded_up(value) <= value * 1.0002 + 1e-12
        assert value <= float(epsilon_text(value)) <= value * 1.002 + 1e-12
    assert [*map(epsilon_text, (0.9993401, 9.9991, 3.0, 0))] == ["0.9994", "10", "3", "0"]
    assert epsilon_text(None) == epsilon_text(math.inf) == "no bound"


@given(st.floats(0, 1))
def test_percentages_of_bounds_are_rounded_up_to_two_decimals(bound):
    shown = float(percent_text(bound).removesuffix(" %"))
    assert 100 * bound <= shown + 1e-13
    assert shown <= 100 * bound + 0.01 + 1e-9
    assert [*map(percent_text, (0.0272, 0.027201, 0.3, 1.0))] == [
        "2.72 %",
        "2.73 %",
        "30 %",
        "100 %",
    ]
