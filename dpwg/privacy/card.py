"""Privacy card: what a release promises, item by item after "How to DP-fy ML" (Ponomareva et al.
2023, section 5.3.3), and a check that its figures follow from the steps that really ran.
"""

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from types import UnionType
from typing import Any, Self, get_args, get_origin

from dpwg.privacy.accountants import rdp
from dpwg.privacy.accounting import Ledger, check_delta, compose, epsilon_text
from dpwg.privacy.card_terms import GROUP_UNIT, Kind, card_terms
from dpwg.privacy.curves import explain

_TOLERANCE = 1e-6  # relative: FFTs differ in their last digits between machines
_PACKAGES = ("dpwg", "torch", "numpy", "opacus", "dp-accounting")
_INPUT = {"name", "source", "licence"}


class CardMismatchError(ValueError):
    """A card states something that its own ledger does not bear out."""


@dataclass(frozen=True, kw_only=True)
class PrivacyCard:
    """What a release promises about the records it was trained on.

    `epsilon` None is no bound. The cross-checks are None where they give none, and PRV where Opacus
    cannot resolve it. `sampling_rate` and `noise_multiplier` are None where the ledger holds none,
    or several. Raises ValueError naming the invalid field.
    """

    setting: str
    unit: str
    adjacency: str
    released: str
    accesses_covered: str
    tuning_not_covered: str
    accountant: str
    sampling: str
    epsilon: float | None
    epsilon_prv: float | None
    epsilon_rdp: float | None
    target_epsilon: float | None
    delta: float
    noise_multiplier: float | None
    sampling_rate: float | None
    steps: int
    max_grad_norm: float | None
    records: int
    dataset: str
    public_inputs: tuple[dict[str, str], ...]
    software: dict[str, str]
    limits: tuple[str, ...]
    ledger: Ledger

    def __post_init__(self) -> None:
        for item in fields(self):
            if not _is(value := getattr(self, item.name), item.type):
                raise ValueError(f"Expected {item.name}={value!r:.200} to be {item.type}.")
        if any(given.keys() != _INPUT for given in self.public_inputs):
            raise ValueError(f"Expected public_inputs={self.public_inputs!r:.200} of {_INPUT}.")
        check_delta(self.delta, records=max(self.records, 1))
        if self.kind == "private" and not self.max_grad_norm:
            raise ValueError(
                f"Expected max_grad_norm={self.max_grad_norm} > 0 in a private card; pass the norm."
            )

    @property
    def kind(self) -> Kind:
        """Public without a step in the ledger, non-private without a bound: never by epsilon 0,
        which many small steps may round to as well.
        """
        if not self.ledger.entries:
            return "public"
        return "non-private" if self.epsilon is None else "private"

    @property
    def sha256(self) -> str:
        """The digest by which a release names its card: of its values, in any order and layout."""
        values = json.dumps(self.to_json(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(values.encode()).hexdigest()

    @property
    def of_groups(self) -> bool:
        """Whether a record of this card is a group of images, not one image."""
        return self.unit.startswith(GROUP_UNIT.partition(":")[0])

    @classmethod
    def from_ledger(
        cls,
        ledger: Ledger,
        *,
        delta: float,
        dataset: str,
        records: int,
        max_grad_norm: float | None,
        public_inputs: Sequence[Mapping[str, str]],
        target_epsilon: float | None = None,
        group_column: str | None = None,
        left_out: bool = False,
    ) -> Self:
        """Card of what `ledger` recorded: an empty one is public, one without noise not private.

        `records` counts the sensitive set, 0 if there is none: groups of images by `group_column`
        where that is given. `left_out` tells that broken images, if any, were skipped, whether or
        not there were. A run past its target has a card too: `verify` refuses it.
        """
        spent = ledger.epsilons(delta)
        kind: Kind = "private" if math.isfinite(spent.pld) else "non-private"
        kind = kind if ledger.entries else "public"
        return cls(
            **card_terms(kind, group_column=group_column, left_out=left_out),
            epsilon=_finite_or_none(spent.pld),
            epsilon_prv=_finite_or_none(spent.prv),
            epsilon_rdp=_finite_or_none(spent.rdp),
            target_epsilon=target_epsilon,
            delta=delta,
            noise_multiplier=_only(ledger, "noise_multiplier"),
            sampling_rate=_only(ledger, "sampling_rate"),
            steps=ledger.steps,
            max_grad_norm=max_grad_norm,
            records=records,
            dataset=dataset,
            public_inputs=tuple(dict(item) for item in public_inputs),
            software=_versions(),
            ledger=compose([ledger]),
        )

    def verify(self) -> None:
        """Raise CardMismatchError unless the figures follow from the ledger.

        Epsilon is recomputed by PLD, to 1e-6. RDP's is to a fifth, since libraries leave out orders
        that do not converge. PRV's, the clip norm and the texts stay the publisher's word.
        """
        ledger = self.ledger
        spent, looser = ledger.pld_epsilon(self.delta), rdp(ledger.runs, self.delta)
        claims: list[tuple[str, float | None, float | None, float]] = [
            ("steps", self.steps, ledger.steps, 0.0),
            ("sampling_rate", self.sampling_rate, _only(ledger, "sampling_rate"), 0.0),
            ("noise_multiplier", self.noise_multiplier, _only(ledger, "noise_multiplier"), 0.0),
            ("epsilon", _or_inf(self.epsilon), spent, _TOLERANCE),
            ("epsilon_rdp", self.epsilon_rdp, self.epsilon_rdp and looser, 0.2),
        ]
        for rate, _, _ in ledger.runs:
            batch = rate * self.records  # a whole number, as the plan has it
            claims.append(("records * sampling_rate", batch, max(1, round(batch)), _TOLERANCE))
        for name, told, ran, tolerance in claims:
            if told != ran and not (told and ran and math.isclose(told, ran, rel_tol=tolerance)):
                raise CardMismatchError(
                    f"Card says {name}={told}, its ledger {ran}; do not publish, write the card "
                    "again from the training state's ledger."
                )
        if spent > _or_inf(self.target_epsilon) * (1 + _TOLERANCE):
            raise CardMismatchError(
                f"Card promises target_epsilon={self.target_epsilon}, its ledger spends {spent}; "
                "do not publish, or state what was spent as the target."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain dict for strict JSON: null stands for no bound, never NaN or Infinity."""
        values = asdict(self) | {"ledger": self.ledger.to_json()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Inverse of `to_json`. Raises ValueError naming unknown, missing or invalid fields."""
        names = {item.name for item in fields(cls)}
        given = set(data) if isinstance(data, dict) else set()
        if given != names:
            unknown, missing = sorted(given - names), sorted(names - given)
            raise ValueError(f"Expected a card's fields; unknown {unknown}, missing {missing}.")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return cls(**values | {"ledger": Ledger.from_json(data["ledger"])})

    def to_markdown(self) -> str:
        """The card for readers: what it promises in one sentence, the figures, then the terms."""
        figures = {
            "epsilon (PLD)": epsilon_text(self.epsilon),
            "epsilon (PRV)": self._cross_check(self.epsilon_prv),
            "epsilon (RDP)": self._cross_check(self.epsilon_rdp),
            "target epsilon": "none"
            if self.target_epsilon is None
            else epsilon_text(self.target_epsilon),
            "delta": _figure(self.delta),
            "noise multiplier": _figure(self.noise_multiplier, "see ledger"),
            "sampling rate": _figure(self.sampling_rate, "see ledger"),
            "steps": f"{self.steps:,}",
            "clip norm": _figure(self.max_grad_norm),
            "records": f"{self.records:,}",
        }
        terms = {
            "Setting": self.setting,
            "Dataset": self.dataset,
            "Unit": self.unit,
            "Adjacency": self.adjacency,
            "Released": self.released,
            "Data accesses covered": self.accesses_covered,
            "Tuning not covered": self.tuning_not_covered,
            "Accountant": self.accountant,
            "Sampling": self.sampling,
            "Software": ", ".join(f"{name} {number}" for name, number in self.software.items()),
        }
        inputs = [f"{i['name']}: {i['source']} ({i['licence']})" for i in self.public_inputs]
        runs = [
            f"{run.steps:,} steps at rate {run.sampling_rate:.4g}, noise {run.noise_multiplier:.4g}"
            for run in self.ledger.entries
        ]
        limits, begun = list(self.limits), self.ledger.begun
        if begun.steps > self.steps:
            limits.append(
                f"Of {begun.steps:,} steps that were begun {self.steps:,} were finished: the run "
                "was interrupted. Epsilon counts what the release follows from; it does not cover "
                "beginning again because of the losses that a run reports. All that were begun "
                f"would spend {epsilon_text(begun.pld_epsilon(self.delta))}."
            )
        lines = ["# Privacy card", "", explain(self.ledger), ""]
        lines += ["| figure | value |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in figures.items()]
        lines += ["", *(f"- **{name}.** {text}" for name, text in terms.items())]
        for title, items in (("Public inputs", inputs), ("Ledger", runs), ("Limits", limits)):
            lines += ["", f"## {title}", "", *(f"- {item}" for item in items or ["none"])]
        return "\n".join(lines) + "\n"

    def _cross_check(self, epsilon: float | None) -> str:
        missing = epsilon is None and self.epsilon is not None
        return "not computed" if missing else epsilon_text(epsilon)


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type; texts are not empty, numbers are finite and >= 0."""
    if isinstance(kind, UnionType):
        return any(_is(value, part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is(v, str) for v in (*value, *value.values()))
    if kind in (int, float):
        real = isinstance(value, int if kind is int else int | float)
        return real and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return isinstance(value, kind) and value != ""


def _only(ledger: Ledger, name: str) -> float | None:
    values = {float(getattr(entry, name)) for entry in ledger.entries}
    return values.pop() if len(values) == 1 else None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # dpwg itself may run from a checkout
            found[name] = version(name)
    return found


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value


def _figure(value: float | None, absent: str = "none") -> str:
    return absent if value is None else f"{value:.4g}"
