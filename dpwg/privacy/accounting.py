"""Privacy accounting for DP-SGD: plan, calibration, ledger. Numbers only, torch is not loaded.

The unit is one record. The relation is zero-out: a record is replaced by one that adds nothing to
any sum, which is add-or-remove-one with the number of records public. The mechanism is a sum of
clipped gradients over a Poisson sample plus Gaussian noise of standard deviation
`noise_multiplier * max_grad_norm`. The figure to show is PLD (dp-accounting).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Context, Decimal
from numbers import Integral, Real
from typing import Any, Self

from dpwg.privacy.accountants import Runs, least_noise, pld, prv, rdp

MIN_DELTA = 1e-10
"""Below this delta the accountants' FFT round-off is no longer small beside delta."""
MAX_STEPS, MAX_KINDS = 100_000, 16
"""Steps of a ledger, and pairs of rate and noise in it: more would take accountants minutes."""


@dataclass(frozen=True, kw_only=True)
class Epsilons:
    """Epsilon of one run by three accountants, each an upper bound; `math.inf` is no bound.

    `prv` is `math.nan` where Opacus cannot resolve it or is not installed.
    """

    pld: float
    prv: float
    rdp: float


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """`steps` noisy steps at one rate and noise. Raises ValueError out of range.

    `lost` counts steps that were begun besides, but never finished: no weights follow from them,
    and epsilon does not count them.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int
    lost: int = 0

    def __post_init__(self) -> None:
        rate, noise = self.sampling_rate, self.noise_multiplier
        if not (_is_finite(rate) and 0 < rate <= 1):
            raise ValueError(f"Expected sampling_rate={rate!r} in (0, 1]; pass records >= batch.")
        if not (_is_finite(noise) and noise >= 0):
            raise ValueError(f"Expected noise_multiplier={noise!r} in [0, inf); 0 is non-private.")
        _check_count("lost", self.lost, 0, MAX_STEPS)
        _check_count("steps", self.steps, 0 if self.lost else 1, MAX_STEPS)


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
        """Number of steps that were finished."""
        return sum(entry.steps for entry in self.entries)

    @property
    def begun(self) -> "Ledger":
        """The same with lost steps counted as if they had been finished."""
        return Ledger(
            entries=[
                replace(entry, steps=entry.steps + entry.lost, lost=0) for entry in self.entries
            ]
        )

    @property
    def runs(self) -> Runs:
        """Finished steps by rate and noise, whose order does not change epsilon.

        Raises ValueError for more than can be accounted for in about a second.
        """
        steps: dict[tuple[float, float], int] = {}
        for entry in self.entries:
            if entry.steps:
                key = (float(entry.sampling_rate), float(entry.noise_multiplier))
                steps[key] = steps.get(key, 0) + int(entry.steps)
        if len(steps) > MAX_KINDS or sum(steps.values()) > MAX_STEPS:
            raise ValueError(
                f"Expected a ledger of at most {MAX_STEPS:,} steps of {MAX_KINDS} kinds, found "
                f"{sum(steps.values()):,} of {len(steps):,}; it is refused."
            )
        return tuple((rate, noise, count) for (rate, noise), count in sorted(steps.items()))

    def record_step(
        self, *, sampling_rate: float, noise_multiplier: float, steps: int = 1, lost: int = 0
    ) -> None:
        """Append a finished step; or, of a run that was killed, so many that were begun and lost.

        Raises ValueError for a rate outside (0, 1] or a negative noise.
        """
        entry = LedgerEntry(
            sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=steps, lost=lost
        )
        last = self.entries[-1] if self.entries else None
        if last and replace(last, steps=steps, lost=lost) == entry:
            self.entries[-1] = replace(last, steps=last.steps + steps, lost=last.lost + lost)
        else:
            self.entries.append(entry)

    def pld_epsilon(self, delta: float) -> float:
        """PLD epsilon of all entries composed: 0.0 if empty, inf if any step ran without noise."""
        _check_delta(delta)
        return pld(self.runs, delta)

    def epsilons(self, delta: float) -> Epsilons:
        """Epsilon of all entries composed, by PLD, PRV and RDP. Loads torch, through Opacus."""
        found, runs = self.pld_epsilon(delta), self.runs
        if found == math.inf:
            return Epsilons(pld=found, prv=found, rdp=found)
        return Epsilons(pld=found, prv=prv(runs, delta), rdp=rdp(runs, delta))

    def to_json(self) -> list[dict[str, float | int]]:
        """Plain list of `{sampling_rate, noise_multiplier, steps}`, in the order of training.

        Entries with lost steps have `lost` too.
        """
        return [
            {
                "sampling_rate": float(entry.sampling_rate),
                "noise_multiplier": float(entry.noise_multiplier),
                "steps": int(entry.steps),
            }
            | ({"lost": int(entry.lost)} if entry.lost else {})
            for entry in self.entries
        ]

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Inverse of `to_json`. Raises ValueError for any other shape, key, type or range."""
        try:
            given = data if isinstance(data, list) else [data]
            ledger = cls(entries=[LedgerEntry(**entry) for entry in given])
        except TypeError as error:
            raise ValueError(f"Expected ledger={data!r:.200} to be entries: {error}.") from error
        _ = ledger.begun.runs  # not too many
        return ledger


def compose(ledgers: Iterable[Ledger]) -> Ledger:
    """One ledger of several releases from the same records: their losses add up, which is less
    than the sum of their epsilons.
    """
    return Ledger(entries=[entry for ledger in ledgers for entry in ledger.entries])


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
        _ = self.ledger
        if not (_is_finite(self.max_grad_norm) and self.max_grad_norm > 0):
            raise ValueError(
                f"Expected max_grad_norm={self.max_grad_norm!r} in (0, inf); it bounds one record."
            )

    @classmethod
    def calibrated(cls, *, target_epsilon: float, **sizes: Any) -> Self:
        """The plan of these sizes with the least noise that keeps PLD epsilon in the target: none
        for one that is infinite.
        """
        plan = cls(**sizes, noise_multiplier=0.0)
        if target_epsilon == math.inf:
            return plan
        noise = least_noise(plan.sampling_rate, plan.steps, plan.delta, target_epsilon)
        return replace(plan, noise_multiplier=noise)

    @property
    def sampling_rate(self) -> float:
        """Probability with which each record joins each batch."""
        return self.batch_size / self.records

    @property
    def ledger(self) -> Ledger:
        """What the ledger holds when the plan has run."""
        entry = LedgerEntry(
            sampling_rate=self.sampling_rate,
            noise_multiplier=self.noise_multiplier,
            steps=self.steps,
        )
        return Ledger(entries=[entry])

    def epsilons(self) -> Epsilons:
        """Epsilon of the whole plan by PLD, PRV and RDP."""
        return self.ledger.epsilons(self.delta)


def pld_epsilon(
    *, sampling_rate: float, noise_multiplier: float, steps: int, delta: float
) -> float:
    """Upper bound on epsilon by PLD: 0.0 for no steps, inf below `MIN_NOISE`. No torch."""
    entry = LedgerEntry(
        sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=steps or 1
    )
    return Ledger(entries=[entry] if steps else []).pld_epsilon(delta)


def epsilon_text(epsilon: float | None) -> str:
    """Epsilon as it is shown, in four digits: rounded up, since a bound may not be understated.

    >>> epsilon_text(0.99934), epsilon_text(3.0), epsilon_text(None)
    ('0.9994', '3', 'no bound')
    """
    if epsilon is None or epsilon == math.inf:
        return "no bound"
    return f"{rounded_up(epsilon, 4):.4g}"


def percent_text(bound: float) -> str:
    """A bound on a rate in percent with two decimals at most, rounded up like epsilon.

    >>> percent_text(0.02718281), percent_text(1.0)
    ('2.72 %', '100 %')
    """
    percent = (100 * Decimal(repr(float(bound)))).quantize(Decimal("0.01"), ROUND_CEILING)
    return f"{float(percent):g} %"


def rounded_up(value: float, digits: int = 5) -> float:
    """A finite value >= 0 in so many digits, never less than it is."""
    context = Context(prec=digits, rounding=ROUND_CEILING)
    return float(context.create_decimal(repr(float(value))))


def default_delta(records: int) -> float:
    """A tenth of 1 / records, and 1e-5 at most."""
    return min(0.1 / max(records, 1), 1e-5)


def check_delta(delta: float, *, records: int) -> None:
    """Raise ValueError unless delta is in [MIN_DELTA, 1/records)."""
    _check_delta(delta)
    if delta >= 1 / records:
        raise ValueError(
            f"Expected delta={delta!r} < 1/records={1 / records:.3g}: at 1/records, publishing one "
            "whole record would count as private; pass a smaller delta."
        )


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _check_count(name: str, value: int, least: int = 1, most: float = math.inf) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"Expected {name}={value!r} to be an integer in {least}..{most:,.0f}.")


def _check_delta(value: float) -> None:
    if not (_is_finite(value) and MIN_DELTA <= value < 1):
        raise ValueError(
            f"Expected delta={value!r} in [{MIN_DELTA:g}, 1); a value near 0.1/records is usual."
        )
