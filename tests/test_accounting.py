import json
import math
import subprocess
import sys

import dp_accounting as dp
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from dpwg.privacy import accounting
from dpwg.privacy.accounting import (
    Ledger,
    LedgerEntry,
    PrivacyPlan,
    calibrate_noise,
    check_delta,
    default_delta,
    epsilon_text,
    epsilons,
    explain,
    max_true_positive_rate,
    pld_epsilon,
    rounded_up,
)

DELTA = 1e-5


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


@pytest.mark.parametrize(
    ("records", "batch", "steps", "target", "noise"),
    [
        (60_000, 1024, 250, 1, 1.32),
        (24_000, 1024, 250, 3, 1.24),
        (24_000, 1024, 250, 10, 0.70),
        (60_000, 1024, 500, 1, 1.65),
        (60_000, 2048, 250, 1, 2.23),
        (24_000, 1024, 250, 1, 2.71),
    ],
)
def test_calibration_gives_the_reference_noise(records, batch, steps, target, noise):
    run = {"sampling_rate": batch / records, "steps": steps, "delta": DELTA}
    found = calibrate_noise(**run, target_epsilon=target)
    assert found == pytest.approx(noise, abs=0.005 + 1e-3 * noise)
    assert 0.998 * target <= pld_epsilon(**run, noise_multiplier=found) <= target


@settings(max_examples=7, deadline=None)
@given(rate=st.floats(0.05, 0.5), steps=st.integers(50, 300), target=st.floats(0.1, 0.5))
def test_calibration_never_overshoots_and_wastes_little(rate, steps, target):
    noise = calibrate_noise(sampling_rate=rate, steps=steps, delta=DELTA, target_epsilon=target)
    assert plain_dp_accounting(rate, noise, steps) <= target
    assert plain_dp_accounting(rate, noise / 1.003, steps) > target


@st.composite
def targets(
    draw: st.DrawFn, *, most_steps: int, most_epsilon: float, least_rate: float
) -> dict[str, float]:
    """Runs of any size, rate and delta; great epsilons and tiny rates take seconds."""

    def spread(least: float, most: float) -> float:
        return 10 ** draw(st.floats(math.log10(least), math.log10(most)))

    records = round(spread(2, 1e9))
    return {
        "records": records,
        "batch_size": max(1, round(spread(least_rate, 1) * records)),
        "steps": round(spread(1, most_steps)),
        "delta": max(1e-10, spread(1e-6, 0.99) / records),
        "target_epsilon": spread(0.02, most_epsilon),
    }


def keeps_its_target(target: dict[str, float]) -> None:
    try:
        plan = PrivacyPlan.calibrated(**target, max_grad_norm=1.0)
    except ValueError as error:
        if "reachable with noise <= 16384" not in str(error):
            raise
        return
    run = (plan.sampling_rate, plan.noise_multiplier, plan.steps, plan.delta)
    assert plain_dp_accounting(*run) <= target["target_epsilon"]


@settings(max_examples=4)
@given(targets(most_steps=500, most_epsilon=3.0, least_rate=1e-2))
def test_no_calibrated_plan_overshoots(target):
    keeps_its_target(target)


@pytest.mark.slow
@settings(max_examples=120)
@given(targets(most_steps=20_000, most_epsilon=30.0, least_rate=1e-8))
def test_none_of_many_calibrated_plans_overshoots(target):
    keeps_its_target(target)


@pytest.mark.parametrize(("rate", "steps", "target"), [(0.02, 250, 100.0), (1.0, 250, 0.1)])
def test_calibration_keeps_far_targets(rate, steps, target):
    noise = calibrate_noise(sampling_rate=rate, steps=steps, delta=DELTA, target_epsilon=target)
    spent = pld_epsilon(sampling_rate=rate, noise_multiplier=noise, steps=steps, delta=DELTA)
    assert 0.998 * target <= spent <= target


def test_calibration_returns_the_least_noise_where_sampling_alone_suffices():
    noise = calibrate_noise(sampling_rate=1.0, steps=1, delta=DELTA, target_epsilon=100.0)
    assert noise == accounting.MIN_NOISE


def test_calibration_refuses_a_target_below_its_resolution():
    with pytest.raises(ValueError, match="target_epsilon=1e-06 reachable"):
        calibrate_noise(sampling_rate=0.02, steps=250, delta=DELTA, target_epsilon=1e-6)


@pytest.mark.parametrize(("noise", "steps"), [(10.0, 250), (1.0, 1), (0.5, 1), (50.0, 10)])
def test_full_batches_match_the_closed_form(noise, steps):
    exact = analytic_gaussian_epsilon(noise, steps)
    found = epsilons(sampling_rate=1.0, noise_multiplier=noise, steps=steps, delta=DELTA)
    assert found.pld == pytest.approx(exact, rel=1e-4)
    assert found.pld >= exact * (1 - 1e-9)
    assert found.prv == pytest.approx(exact, rel=1e-2)
    assert found.rdp > exact


@pytest.mark.parametrize(
    ("rate", "noise"), [(0.02, 1.0), (0.02, 0.5), (0.2, 0.5), (0.5, 2.0), (0.9, 3.0), (1.0, 1.0)]
)
def test_one_sampled_step_matches_its_closed_form(rate: float, noise: float):
    exact = one_step_epsilon(rate, noise)
    found = pld_epsilon(sampling_rate=rate, noise_multiplier=noise, steps=1, delta=DELTA)
    assert exact * (1 - 1e-9) <= found <= exact * (1 + 1e-4)


@pytest.mark.parametrize(
    ("rate", "noise", "delta"), [(1.0, math.sqrt(3), 0.126936), (0.2, 0.5, 0.15594)]
)
def test_three_steps_spend_what_the_tests_of_dp_accounting_say(rate, noise, delta):
    found = pld_epsilon(sampling_rate=rate, noise_multiplier=noise, steps=3, delta=delta)
    assert found == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta"),
    [(0.001, 0.8, 1, 1e-6), (0.02, 0.7, 45, 1e-5), (0.3, 5.0, 2000, 1e-9), (1.0, 20.0, 50, 1e-3)],
)
def test_pld_is_what_dp_accounting_gives(rate, noise, steps, delta):
    found = pld_epsilon(sampling_rate=rate, noise_multiplier=noise, steps=steps, delta=delta)
    assert found == pytest.approx(plain_dp_accounting(rate, noise, steps, delta), rel=1e-9)


@pytest.mark.parametrize(
    ("noise", "epochs", "published"), [(1.12, 60, 2.92), (0.6, 30, 9.74), (1.2, 10, 1.20)]
)
def test_published_mnist_runs_spend_less_than_their_first_analysis_said(noise, epochs, published):
    """The table of TensorFlow Privacy's tutorial: RDP by the looser conversion of its time."""
    steps = epochs * 60_000 // 256
    found = epsilons(sampling_rate=256 / 60_000, noise_multiplier=noise, steps=steps, delta=DELTA)
    assert 0.65 * published < found.pld < found.rdp < published


@pytest.mark.parametrize(
    ("batch", "steps", "noise", "about"),
    [(1024, 200, 1.36, 1), (1024, 400, 0.95, 3), (2048, 200, 0.7, 10)],
)
def test_three_accountants_agree_at_shipped_settings(batch, steps, noise, about):
    found = epsilons(sampling_rate=batch / 50_000, noise_multiplier=noise, steps=steps, delta=DELTA)
    assert found.pld == pytest.approx(about, rel=0.2)
    assert found.prv == pytest.approx(found.pld, rel=0.01)
    assert found.pld < found.rdp < 1.3 * found.pld


@settings(max_examples=6)
@given(rate=st.floats(0.005, 0.3), noise=st.floats(0.7, 5.0), steps=st.integers(20, 1000))
def test_three_accountants_agree_at_any_usual_settings(rate, noise, steps):
    found = epsilons(sampling_rate=rate, noise_multiplier=noise, steps=steps, delta=DELTA)
    assert found.prv == pytest.approx(found.pld, rel=0.01)
    assert found.rdp >= found.pld


powers_of_ten = st.floats(-3, 0).map(lambda x: 10**x)


@settings(max_examples=8)
@given(rate=powers_of_ten, noise=st.floats(0.5, 50.0), steps=st.integers(1, 1000))
def test_rdp_is_never_below_pld(rate, noise, steps):
    runs = ((rate, noise, steps),)
    found = pld_epsilon(sampling_rate=rate, noise_multiplier=noise, steps=steps, delta=DELTA)
    rounded_up = 1e-4 * math.sqrt(steps)  # by PLD's grid, of which RDP has none
    assert accounting._rdp(runs, DELTA) >= found - rounded_up


def test_prv_beyond_its_reach_is_nan_and_not_a_number():
    found = epsilons(sampling_rate=0.02, noise_multiplier=0.1, steps=100, delta=DELTA)
    assert math.isfinite(found.pld)
    assert math.isnan(found.prv)
    assert found.rdp > found.pld


def test_epsilon_grows_with_steps_rate_and_less_noise():
    base = {"sampling_rate": 0.02, "noise_multiplier": 3.0, "steps": 50, "delta": DELTA}
    assert pld_epsilon(**base | {"steps": 0}) == 0.0
    spent = [pld_epsilon(**base | {"steps": steps}) for steps in (1, 50, 51, 500)]
    assert spent == sorted(set(spent))
    assert pld_epsilon(**base | {"sampling_rate": 0.03}) > spent[1]
    assert pld_epsilon(**base | {"noise_multiplier": 2.9}) > spent[1]


@settings(max_examples=6)
@given(
    rate=powers_of_ten,
    noise=st.floats(0.5, 50.0),
    steps=st.lists(st.integers(1, 1000), min_size=2, max_size=3, unique=True).map(sorted),
)
def test_epsilon_never_falls_as_steps_grow(rate, noise, steps):
    spent = [
        pld_epsilon(sampling_rate=rate, noise_multiplier=noise, steps=count, delta=DELTA)
        for count in steps
    ]
    assert spent == sorted(spent)


def test_epsilon_does_not_fall_where_the_grid_changes():
    run = {"sampling_rate": 1.0, "noise_multiplier": 0.86, "delta": DELTA}
    spent = [pld_epsilon(**run, steps=steps) for steps in (32, 33, 34)]
    assert spent == sorted(spent)
    assert spent[0] < 50 < spent[1]


def test_above_50_the_coarse_grid_stays_a_close_upper_bound():
    found = pld_epsilon(sampling_rate=0.9, noise_multiplier=2.0, steps=250, delta=DELTA)
    fine = plain_dp_accounting(0.9, 2.0, 250)
    assert fine <= found <= fine * 1.0002


@pytest.mark.parametrize("noise", [0.0, 0.09])
def test_no_noise_is_no_bound(noise):
    found = epsilons(sampling_rate=0.02, noise_multiplier=noise, steps=1, delta=DELTA)
    assert (found.pld, found.prv, found.rdp) == (math.inf, math.inf, math.inf)


def test_plan_calibrates_and_reports():
    plan = PrivacyPlan.calibrated(
        records=24_000,
        batch_size=1024,
        steps=250,
        delta=DELTA,
        max_grad_norm=1.0,
        target_epsilon=1.0,
    )
    assert plan.sampling_rate == 1024 / 24_000
    assert plan.noise_multiplier == pytest.approx(2.71, abs=0.006)
    assert 0.999 <= plan.epsilons().pld <= 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": 1e-3}, "one whole record"),
        ({"delta": 0.0}, "delta=0.0 in"),
        ({"delta": 1e-12}, "delta=1e-12 in"),
        ({"batch_size": 1400}, r"sampling_rate=1.4 in \(0, 1\]; pass records >= batch"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"records": 1000.0}, "records=1000.0 to be an integer"),
        ({"steps": 0}, "steps=0"),
        ({"steps": True}, "steps=True"),
        ({"noise_multiplier": -1.0}, "noise_multiplier=-1.0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0"),
        ({"max_grad_norm": math.inf}, "max_grad_norm=inf"),
    ],
)
def test_plan_refuses(change, message):
    good = {"records": 1000, "batch_size": 100, "steps": 10, "delta": 1e-4}
    good |= {"noise_multiplier": 1.0, "max_grad_norm": 1.0}
    PrivacyPlan(**good)
    with pytest.raises(ValueError, match=message):
        PrivacyPlan(**good | change)


@given(st.integers(2, 10**9))
def test_delta_must_be_below_one_record_in_all_of_them(records: int):
    with pytest.raises(ValueError, match="publishing one whole record would count as private"):
        check_delta(1 / records, records=records)
    check_delta(math.nextafter(1 / records, 0), records=records)


def test_ledger_merges_equal_steps_and_round_trips():
    ledger = Ledger()
    for noise in (1.0, 1.0, 2.0, 1.0):
        ledger.record_step(sampling_rate=0.02, noise_multiplier=noise)
    assert [entry.steps for entry in ledger.entries] == [2, 1, 1]
    assert ledger.steps == 4
    assert Ledger.from_json(json.loads(json.dumps(ledger.to_json()))) == ledger


def test_ledger_of_equal_parts_spends_what_one_run_spends():
    halves = [
        LedgerEntry(sampling_rate=0.02, noise_multiplier=1.0, steps=60),
        LedgerEntry(sampling_rate=0.05, noise_multiplier=2.0, steps=1),
        LedgerEntry(sampling_rate=0.02, noise_multiplier=1.0, steps=40),
    ]
    merged = [LedgerEntry(sampling_rate=0.02, noise_multiplier=1.0, steps=100), halves[1]]
    assert Ledger(entries=halves).pld_epsilon(DELTA) == Ledger(entries=merged).pld_epsilon(DELTA)


def test_mixed_ledger_composes_by_all_accountants():
    """Noise 1 and 2 at rate 1 are together one Gaussian step with 1/noise^2 = 1 + 1/4."""
    ledger = Ledger()
    ledger.record_step(sampling_rate=1.0, noise_multiplier=1.0)
    ledger.record_step(sampling_rate=1.0, noise_multiplier=2.0)
    exact = analytic_gaussian_epsilon(1 / math.sqrt(1.25), 1)
    found = ledger.epsilons(DELTA)
    assert found.pld == pytest.approx(exact, rel=1e-4)
    assert found.prv == pytest.approx(exact, rel=1e-2)
    assert exact < found.rdp < 1.2 * exact


def test_one_step_without_noise_voids_the_ledger_and_an_empty_one_spends_nothing():
    ledger = Ledger()
    assert ledger.epsilons(DELTA) == accounting.Epsilons(pld=0.0, prv=0.0, rdp=0.0)
    ledger.record_step(sampling_rate=0.02, noise_multiplier=5.0)
    assert ledger.pld_epsilon(DELTA) < 1
    ledger.record_step(sampling_rate=0.02, noise_multiplier=0.0)
    assert ledger.pld_epsilon(DELTA) == math.inf


@pytest.mark.parametrize(("rate", "noise"), [(0.0, 1.0), (1.1, 1.0), (0.1, -1.0), ("0.1", 1.0)])
def test_ledger_refuses_a_step_out_of_range_and_stays_as_it_was(rate, noise):
    ledger = Ledger()
    with pytest.raises(ValueError, match=r"Expected (sampling_rate|noise_multiplier)="):
        ledger.record_step(sampling_rate=rate, noise_multiplier=noise)
    assert ledger.entries == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"sampling_rate": math.nan}, "sampling_rate=nan"),
        ({"sampling_rate": None}, "sampling_rate=None"),
        ({"noise_multiplier": -0.1}, "noise_multiplier=-0.1"),
        ({"noise_multiplier": "1"}, "noise_multiplier='1'"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"extra": 1}, "'extra': 1"),
    ],
)
def test_ledger_json_is_validated(entry, message):
    good = {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 3}
    assert Ledger.from_json([good]).steps == 3
    with pytest.raises(ValueError, match=message):
        Ledger.from_json([good | entry])


@pytest.mark.parametrize("data", [{}, None, "[]", [3], [{"steps": 3}]])
def test_ledger_json_of_another_shape_is_refused(data):
    with pytest.raises(ValueError, match="Expected ledger"):
        Ledger.from_json(data)


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("false_alarms", [0.001, 0.01, 0.3, 0.9])
def test_best_attack_on_a_gaussian_step_stays_below_the_bound(noise, false_alarms):
    epsilon = analytic_gaussian_epsilon(noise, 1)
    best = norm.cdf(norm.ppf(false_alarms) + 1 / noise)
    assert best <= max_true_positive_rate(epsilon, DELTA, false_alarms) <= 1


def test_attack_bound_is_met_by_randomized_response():
    epsilon = math.log(3)  # tells the truth three times in four
    assert max_true_positive_rate(epsilon, 0.0, 0.25) == pytest.approx(0.75)
    assert max_true_positive_rate(0.0, 0.0, 0.3) == pytest.approx(0.3)
    assert max_true_positive_rate(5000.0, 0.0, 0.01) == 1.0


def test_explanation_names_the_rate_and_the_two_ends():
    assert "at most 2.72 % of the time" in explain(1.0, DELTA)
    assert "saw no sensitive record" in explain(0.0, DELTA)
    assert explain(None, DELTA) == explain(math.inf, DELTA)
    assert "no bound" in explain(None, DELTA)
    with pytest.raises(ValueError, match="epsilon=-1"):
        explain(-1, DELTA)
    with pytest.raises(ValueError, match="epsilon=nan"):
        explain(math.nan, DELTA)


def test_numbers_alone_do_not_load_torch():
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, accounting.__file__], check=True)


def test_what_is_shown_of_a_bound_never_understates_it():
    for value in (0.0, 1.0, 0.12345, 0.9993401, 1.8980624827, 9.99801, 263.80625482, 1e-7):
        assert value <= rounded_up(value) <= value * 1.0002 + 1e-12
        assert value <= float(epsilon_text(value)) <= value * 1.002 + 1e-12
    assert [*map(epsilon_text, (0.9993401, 9.9991, 3.0, 0))] == ["0.9994", "10", "3", "0"]
    assert epsilon_text(None) == epsilon_text(math.inf) == "no bound"


@pytest.mark.parametrize("records", [1, 9, 10, 50_000, 82_783])
def test_the_usual_delta_is_at_most_a_tenth_of_one_over_the_records(records):
    assert 0.01 / records < default_delta(records) <= 0.1 / records * (1 + 1e-9)
