"""Privacy accounting for DP-SGD: plan, calibration, ledger. Numbers only, torch is not loaded.

The unit is one record, the relation add-or-remove-one, the mechanism a sum of clipped gradients
over a Poisson sample plus Gaussian noise of standard deviation `noise_multiplier * max_grad_norm`.
The figure to show is PLD (dp-accounting); PRV and RDP (Opacus) stand beside it as a cross-check.
"""

import importlib.util
import math
import warnings
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Context
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Self

import numpy as np

MIN_NOISE = 0.1
"""Less noise than this counts as none: one step at rate 1 already spends epsilon 91.8."""
MAX_NOISE = 2.0**14
MIN_DELTA = 1e-10
"""Below this delta the accountants' FFT round-off is no longer small beside delta."""
MAX_EPSILON = 700.0
"""A greater epsilon is reported as inf: e^709 overflows."""

_FINE, _COARSE, _COARSE_ABOVE = 1e-4, 1e-2, 50.0
_PRV_POINTS = 2**22
_Run = tuple[float, float, int]  # sampling rate, noise multiplier, steps


@dataclass(frozen=True, kw_only=True)
class Epsilons:
    """Epsilon of one run by three accountants, each an upper bound; `math.inf` is no bound.

    `prv` is `math.nan` where Opacus cannot resolve it to 5 % (very small noise, very many steps);
    both cross-checks are where Opacus is not installed, as on a machine that only trains.
    """

    pld: float
    prv: float
    rdp: float


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """`steps` consecutive noisy steps at one rate and noise. Raises ValueError out of range."""

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        rate, noise = self.sampling_rate, self.noise_multiplier
        if not (_is_finite(rate) and 0 < rate <= 1):
            raise ValueError(f"Expected sampling_rate={rate!r} in (0, 1]; pass records >= batch.")
        if not (_is_finite(noise) and noise >= 0):
            raise ValueError(f"Expected noise_multiplier={noise!r} in [0, inf); 0 is non-private.")
        _check_count("steps", self.steps)


@dataclass(kw_only=True)
class Ledger:
    """What really ran, run-length coded: record each noisy step as it is taken.

    >>> ledger = Ledger()
    >>> for _ in range(3):
    ...     ledger.record_step(sampling_rate=0.02, noise_multiplier=1.0)
    >>> ledger.to_json()
    [{'sampling_rate': 0.02, 'noise_multiplier': 1.0, 'steps': 3}]
    """

    entries: list[LedgerEntry] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Number of steps recorded."""
        return sum(entry.steps for entry in self.entries)

    def record_step(self, *, sampling_rate: float, noise_multiplier: float) -> None:
        """Append one step. Raises ValueError for a rate outside (0, 1] or a negative noise."""
        step = LedgerEntry(sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=1)
        if self.entries and replace(self.entries[-1], steps=1) == step:
            self.entries[-1] = replace(step, steps=self.entries[-1].steps + 1)
        else:
            self.entries.append(step)

    def pld_epsilon(self, delta: float) -> float:
        """PLD epsilon of all entries composed: 0.0 if empty, inf if any step ran without noise."""
        _check_delta(delta)
        return _pld(self._runs(), delta)

    def epsilons(self, delta: float) -> Epsilons:
        """Epsilon of all entries composed, by PLD, PRV and RDP. Loads torch, through Opacus."""
        pld, runs = self.pld_epsilon(delta), self._runs()
        if not runs or pld == math.inf:
            return Epsilons(pld=pld, prv=pld, rdp=pld)
        if importlib.util.find_spec("opacus") is None:
            return Epsilons(pld=pld, prv=math.nan, rdp=math.nan)
        rdp = _rdp(runs, delta)
        return Epsilons(pld=pld, prv=_prv(runs, delta, scale=rdp), rdp=rdp)

    def to_json(self) -> list[dict[str, float | int]]:
        """Plain list of `{sampling_rate, noise_multiplier, steps}`, in the order of training."""
        return [
            {
                "sampling_rate": float(entry.sampling_rate),
                "noise_multiplier": float(entry.noise_multiplier),
                "steps": int(entry.steps),
            }
            for entry in self.entries
        ]

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Inverse of `to_json`. Raises ValueError for any other shape, key, type or range."""
        names = {"sampling_rate", "noise_multiplier", "steps"}
        if not isinstance(data, list) or any(
            not isinstance(entry, dict) or set(entry) != names for entry in data
        ):
            raise ValueError(f"Expected ledger={data!r} as a list of dicts of {sorted(names)}.")
        return cls(entries=[LedgerEntry(**entry) for entry in data])

    def _runs(self) -> tuple[_Run, ...]:
        """Equal entries merged wherever they stand: the order of steps does not change epsilon."""
        steps: dict[tuple[float, float], int] = {}
        for entry in self.entries:
            key = (float(entry.sampling_rate), float(entry.noise_multiplier))
            steps[key] = steps.get(key, 0) + int(entry.steps)
        return tuple((rate, noise, count) for (rate, noise), count in sorted(steps.items()))


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """A DP-SGD run before it starts: `batch_size` is the expected size of a Poisson batch.

    Noise 0 plans a non-private run (epsilon inf). Raises ValueError for a value out of range;
    delta must stay below 1/records, where publishing one whole record would count as private.
    """

    records: int
    batch_size: int
    steps: int
    delta: float
    noise_multiplier: float
    max_grad_norm: float

    def __post_init__(self) -> None:
        _check_count("records", self.records)
        _check_count("batch_size", self.batch_size)
        check_delta(self.delta, records=self.records)
        _check_count("steps", self.steps)
        self._ledger()
        if not (_is_finite(self.max_grad_norm) and self.max_grad_norm > 0):
            raise ValueError(
                f"Expected max_grad_norm={self.max_grad_norm!r} in (0, inf); it bounds one record."
            )

    @classmethod
    def calibrated(
        cls,
        *,
        records: int,
        batch_size: int,
        steps: int,
        delta: float,
        max_grad_norm: float,
        target_epsilon: float,
    ) -> Self:
        """The plan with the least noise that keeps PLD epsilon <= `target_epsilon`."""
        plan = cls(
            records=records,
            batch_size=batch_size,
            steps=steps,
            delta=delta,
            noise_multiplier=0.0,
            max_grad_norm=max_grad_norm,
        )
        rate = plan.sampling_rate
        noise = calibrate_noise(
            sampling_rate=rate, steps=steps, delta=delta, target_epsilon=target_epsilon
        )
        return replace(plan, noise_multiplier=noise)

    @property
    def sampling_rate(self) -> float:
        """Probability with which each record joins each batch."""
        return self.batch_size / self.records

    def epsilons(self) -> Epsilons:
        """Epsilon of the whole plan by PLD, PRV and RDP."""
        return self._ledger().epsilons(self.delta)

    def _ledger(self) -> Ledger:
        return _uniform_ledger(self.sampling_rate, self.noise_multiplier, self.steps)


def epsilons(
    *, sampling_rate: float, noise_multiplier: float, steps: int, delta: float
) -> Epsilons:
    """Epsilon by PLD, PRV and RDP of `steps` Poisson-sampled Gaussian steps. Loads torch."""
    return _uniform_ledger(sampling_rate, noise_multiplier, steps).epsilons(delta)


def pld_epsilon(
    *, sampling_rate: float, noise_multiplier: float, steps: int, delta: float
) -> float:
    """Upper bound on epsilon by PLD: 0.0 for no steps, inf below `MIN_NOISE`. No torch.

    Privacy losses are rounded up to a grid of 1e-4; above epsilon 50 to one of 1e-2, which
    costs about 0.01 % in common runs and spares minutes.
    """
    return _uniform_ledger(sampling_rate, noise_multiplier, steps).pld_epsilon(delta)


def calibrate_noise(
    *, sampling_rate: float, steps: int, delta: float, target_epsilon: float
) -> float:
    """Least noise multiplier in [MIN_NOISE, MAX_NOISE] with `pld_epsilon` <= `target_epsilon`.

    Never overshoots; either spends at least 99.9 % of the target, or is within 0.1 % of the least
    such noise. Raises ValueError for values out of range or a target below what PLD can resolve.

    >>> noise = calibrate_noise(sampling_rate=0.1, steps=100, delta=1e-5, target_epsilon=2.0)
    >>> 1.998 < pld_epsilon(
    ...     sampling_rate=0.1, noise_multiplier=noise, steps=100, delta=1e-5) <= 2.0
    True
    """
    LedgerEntry(sampling_rate=sampling_rate, noise_multiplier=MIN_NOISE, steps=steps)
    _check_delta(delta)
    if not (_is_finite(target_epsilon) and target_epsilon > 0):
        raise ValueError(f"Expected target_epsilon={target_epsilon!r} in (0, inf).")

    def least_noise(interval: float, *, start: float, factor: float, slack: float) -> float:
        def spent(noise: float) -> float:
            return _pld(((float(sampling_rate), noise, int(steps)),), delta, interval)

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

    # Rounding to a grid adds about interval * sqrt(steps): a coarse one guesses, the fine decides.
    coarse = min(max(target_epsilon / (50 * math.sqrt(steps)), _FINE), _COARSE)
    guess = least_noise(coarse, start=1.0, factor=2.0, slack=2e-4)
    return least_noise(_FINE, start=guess, factor=1.0005, slack=1e-3)


def max_true_positive_rate(
    epsilon: float | None, delta: float, false_positive_rate: float
) -> float:
    """Most that any membership attack at `false_positive_rate` can detect, in [0, 1].

    min(e^eps a + delta, 1 - e^-eps (1 - delta - a)), Kairouz et al. 2015; None or inf gives 1.
    """
    for name, value in (("delta", delta), ("false_positive_rate", false_positive_rate)):
        if not (_is_finite(value) and 0 <= value <= 1):
            raise ValueError(f"Expected {name}={value!r} in [0, 1].")
    if epsilon is None or epsilon == math.inf:
        return 1.0
    if not (_is_finite(epsilon) and epsilon >= 0):
        raise ValueError(f"Expected epsilon={epsilon!r} >= 0, or None for no bound.")
    few = math.exp(min(epsilon, MAX_EPSILON)) * false_positive_rate + delta
    many = 1 - math.exp(-epsilon) * (1 - delta - false_positive_rate)
    return min(few, many, 1.0)


def explain(epsilon: float | None, delta: float) -> str:
    """One sentence in plain words on what (epsilon, delta) promises; None or inf is no bound."""
    rate = max_true_positive_rate(epsilon, delta, 0.01)
    if epsilon is None or epsilon == math.inf:
        return "There is no bound on what this model may reveal about a training record."
    if epsilon == 0:
        return "This model saw no sensitive record, so it can reveal nothing about one."
    percent = math.ceil(rate * 1e4 - 1e-9) / 100  # rounded up: a bound may not be understated
    return (
        "Whatever else they know, an attacker who accepts 1 % false alarms can recognise "
        f"a training record at most {percent:g} % of the time."
    )


def epsilon_text(epsilon: float | None) -> str:
    """Epsilon as it is shown, in four digits: rounded up, since a bound may not be understated.

    >>> epsilon_text(0.99934), epsilon_text(3.0), epsilon_text(None)
    ('0.9994', '3', 'no bound')
    """
    if epsilon is None or epsilon == math.inf:
        return "no bound"
    return f"{rounded_up(epsilon, 4):.4g}"


def rounded_up(value: float, digits: int = 5) -> float:
    """A finite value >= 0 in so many digits, never less than it is."""
    context = Context(prec=digits, rounding=ROUND_CEILING)
    return float(context.create_decimal(repr(float(value))))


def default_delta(records: int) -> float:
    """The power of ten at or below a tenth of 1 / records; ValueError where there are none."""
    if records < 1:
        raise ValueError(f"Expected records={records} >= 1.")
    return float(f"1e{math.floor(math.log10(0.1 / records))}")


def check_delta(delta: float, *, records: int) -> None:
    """Raise ValueError unless delta is in [MIN_DELTA, 1/records)."""
    _check_delta(delta)
    if delta >= 1 / records:
        raise ValueError(
            f"Expected delta={delta!r} < 1/records={1 / records:.3g}: at 1/records, publishing one "
            "whole record would count as private; pass a smaller delta."
        )


def _uniform_ledger(sampling_rate: float, noise_multiplier: float, steps: int) -> Ledger:
    entry = LedgerEntry(
        sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=steps or 1
    )
    return Ledger(entries=[entry] if steps else [])


@lru_cache(maxsize=512)
def _pld(runs: tuple[_Run, ...], delta: float, interval: float = _FINE) -> float:
    if not runs:
        return 0.0
    if any(noise < MIN_NOISE for _, noise, _ in runs):
        return math.inf
    if interval < _COARSE and (coarse := _pld(runs, delta, _COARSE)) > _COARSE_ABOVE:
        return coarse
    import dp_accounting as dp  # with SciPy behind it: not before an epsilon is asked for
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, interval)
    with np.errstate(over="ignore"):  # e^709 overflows, past MAX_EPSILON
        for rate, noise, steps in runs:
            step = dp.GaussianDpEvent(noise)
            accountant.compose(step if rate == 1 else dp.PoissonSampledDpEvent(rate, step), steps)
        epsilon = float(accountant.get_epsilon(delta))
    return epsilon if epsilon <= MAX_EPSILON else math.inf


@lru_cache(maxsize=512)
def _rdp(runs: tuple[_Run, ...], delta: float) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps) for rate, noise, steps in runs]
    orders = [*RDPAccountant.DEFAULT_ALPHAS, 64, 128, 256, 512]
    with warnings.catch_warnings():  # any order gives a bound; the best one may be the last
        warnings.filterwarnings("ignore", message="Optimal order")
        return max(float(accountant.get_epsilon(delta, alphas=orders)), 0.0)


@lru_cache(maxsize=512)
def _prv(runs: tuple[_Run, ...], delta: float, *, scale: float) -> float:
    """PRV upper bound to 0.1 % of `scale`, or as near as 4 M grid points allow, else nan."""
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv import (
        PoissonSubsampledGaussianPRV,
        compute_safe_domain_size,
    )

    counts = [steps for _, _, steps in runs]
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


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"Expected {name}={value!r} to be an integer >= 1.")


def _check_delta(value: float) -> None:
    if not (_is_finite(value) and MIN_DELTA <= value < 1):
        raise ValueError(
            f"Expected delta={value!r} in [{MIN_DELTA:g}, 1); a value near 0.1/records is usual."
        )
