"""Privacy card: what a release promises, item by item after "How to DP-fy ML" (Ponomareva et al.
2023, section 5.3.3), and a check that its figures follow from the steps that really ran.
"""

import hashlib
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

from dpwg.privacy.accounting import Ledger, check_delta, epsilon_text, explain

_TOLERANCE = 1e-6  # relative: FFTs differ in their last digits between machines
_PACKAGES = ("dpwg", "torch", "numpy", "opacus", "dp-accounting")
_TERMS: dict[str, Any] = {
    "unit": "One image with its captions: a person with several images has several records.",
    "adjacency": "Add or remove one record.",
    "released": "Model weights, configuration and this card; not the run's losses, gradient norms, "
    "optimizer state or random state.",
    "accesses_covered": "Every gradient step that the released weights depend on; nothing else "
    "that was computed from the sensitive records is released.",
    "tuning_not_covered": "Choices made by looking at private results (steps, clip norm, learning "
    "rate, checkpoint) are not covered by epsilon.",
    "accountant": "PLD (dp-accounting); PRV and RDP (Opacus) as a cross-check.",
}
_GROUP_UNIT = (
    "One group: all images with the same {column}, with their captions. A record of this card is a "
    "group: {groups:,} groups of {images:,} images in all. Each visit of a step draws one image of "
    "the group."
)
"""Up to the colon it tells cards of groups apart, those that are out in the world too: keep it."""
_IMAGE_LIMIT = "Protects an image, not a person who appears in several."
_COUNT_LIMIT = "The number of records and the sampling rate are treated as public."
_GROUP_LIMITS = {
    _IMAGE_LIMIT: "Protects a group as {column} tells it, not whoever is in images of several "
    "groups.",
    _COUNT_LIMIT: "The numbers of groups and images and the sampling rate are treated as public.",
}
_LEFT_OUT = (
    "Images without a caption, or that cannot be decoded, were left out, if there were any, before "
    "the records were counted."
)
_TERMS_BY_KIND: dict[str, dict[str, Any]] = {
    "private": {
        "setting": "Central: one trusted curator trains with DP-SGD and publishes the result.",
        "sampling": "Poisson: each step takes every record independently with probability "
        "sampling_rate. It holds: the training loop draws so, divides by the expected batch size, "
        "and takes a noise step for an empty batch too.",
        "limits": (
            "Is for this release alone: epsilons of releases from the same records add up, and one "
            "without a bound leaves none.",
            _IMAGE_LIMIT,
            _COUNT_LIMIT,
            "Is made to each record: of what stands in k of them, such as an image listed k times, "
            "epsilon is k times as large or more.",
            "Holds as far as the public inputs were made without the sensitive records.",
            "Noise is drawn in floating point by a generator that is not cryptographic (Philox, "
            "keyed by the operating system): attacks on its low-order bits are not excluded.",
            "Bounds what the model adds to an attacker's knowledge, not what is known already.",
        ),
    },
    "non-private": {
        "setting": "Not private: trained on sensitive records without a guarantee.",
        "sampling": "None is relied upon, because no guarantee is claimed.",
        "limits": ("Training records may be reproduced; do not publish if they are sensitive.",),
    },
    "public": {
        "setting": "Public: trained on public records only.",
        "sampling": "No sensitive batch was drawn.",
        "limits": ("Says nothing about the privacy of people in the public records.",),
    },
}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_figure(value: Any) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value) and value >= 0


def _is_dict_of_text(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, (*value, *value.values())))


def _is_public_input(value: Any) -> bool:
    return _is_dict_of_text(value) and value.keys() == {"name", "source", "licence"}


def _is_tuple_of(item: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, tuple) and all(map(item, value))


_RULES: dict[Any, tuple[Callable[[Any], bool], str]] = {  # by a field's annotation
    str: (_is_text, "a text"),
    int: (lambda v: isinstance(v, int) and _is_figure(v), "an integer >= 0"),
    float: (_is_figure, "a finite number >= 0"),
    float | None: (lambda v: v is None or _is_figure(v), "a finite number >= 0, or None"),
    dict[str, str]: (_is_dict_of_text, "a dict of texts"),
    tuple[str, ...]: (partial(_is_tuple_of, _is_text), "a tuple of texts"),
    tuple[dict[str, str], ...]: (
        partial(_is_tuple_of, _is_public_input),
        "a tuple of dicts with texts for name, source and licence",
    ),
    tuple[dict[str, float | int], ...]: (lambda v: isinstance(v, tuple), "a tuple of entries"),
}


class CardMismatchError(ValueError):
    """A card states something that its own ledger does not bear out."""


@dataclass(frozen=True, kw_only=True)
class PrivacyCard:
    """What a release promises about the records it was trained on.

    `epsilon` None is no bound (not private), 0.0 is no sensitive record seen (public). The
    cross-checks are None where Opacus gives no bound. `sampling_rate` and `noise_multiplier` are
    None where the ledger holds none, or several. Raises ValueError naming the invalid field.
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
    ledger: tuple[dict[str, float | int], ...]

    def __post_init__(self) -> None:
        for item in fields(self):
            obeys, rule = _RULES[item.type]
            if not obeys(value := getattr(self, item.name)):
                raise ValueError(f"Expected {item.name}={value!r} to be {rule}.")
        check_delta(self.delta, records=max(self.records, 1))
        if self.epsilon and not self.max_grad_norm:
            raise ValueError(
                f"Expected max_grad_norm={self.max_grad_norm} > 0 in a private card; pass the norm."
            )
        Ledger.from_json(list(self.ledger))

    @property
    def sha256(self) -> str:
        """The digest by which a release names its card: of its values, in any order and layout."""
        values = json.dumps(self.to_json(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(values.encode()).hexdigest()

    @property
    def of_groups(self) -> bool:
        """Whether a record of this card is a group of images, not one image."""
        return self.unit.startswith(_GROUP_UNIT.partition(":")[0])

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
        images: int = 0,
        left_out: bool = False,
    ) -> Self:
        """Card of what `ledger` recorded: an empty one is public, one without noise not private.

        `records` counts the sensitive set, 0 if there is none; each public input has a name, a
        source and a licence. Where the records are groups by `group_column`, `images` counts what
        is in all of them; `left_out` tells that broken images, if any, were skipped: the text does
        not depend on whether there were. A run past its target has a card too: `verify` refuses it.
        """
        spent = ledger.epsilons(delta)
        kind = "private" if math.isfinite(spent.pld) else "non-private"
        terms = _TERMS | _TERMS_BY_KIND[kind if ledger.steps else "public"]
        limits: tuple[str, ...] = terms["limits"]
        if group_column is not None:
            column = repr(group_column)
            terms["unit"] = _GROUP_UNIT.format(column=column, groups=records, images=images)
            own = (_GROUP_LIMITS.get(limit, limit) for limit in limits)
            limits = tuple(limit.replace("{column}", column) for limit in own)
        terms["limits"] = (*limits, _LEFT_OUT) if left_out else limits
        return cls(
            **terms,
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
            ledger=tuple(ledger.to_json()),
        )

    def verify(self) -> None:
        """Raise CardMismatchError unless the ledger bears out epsilon, target, steps, rate, noise.

        Epsilon is recomputed by PLD, to 1e-6. The cross-checks, the clip norm, the number of
        records and the texts do not follow from a ledger and stay the publisher's word.
        """
        ledger = Ledger.from_json(list(self.ledger))
        remedy = "do not publish, write the card again from the training state's ledger."
        for name, ran in (
            ("steps", ledger.steps),
            ("sampling_rate", _only(ledger, "sampling_rate")),
            ("noise_multiplier", _only(ledger, "noise_multiplier")),
        ):
            if (told := getattr(self, name)) != ran:
                raise CardMismatchError(f"Card says {name}={told}, its ledger {ran}; {remedy}")
        epsilon, spent = _or_inf(self.epsilon), ledger.pld_epsilon(self.delta)
        is_public, saw_nothing = epsilon == 0, ledger.steps == 0
        if not math.isclose(epsilon, spent, rel_tol=_TOLERANCE) or is_public != saw_nothing:
            raise CardMismatchError(
                f"Card says epsilon={epsilon}, its ledger spends {spent} in {ledger.steps} steps "
                f"at delta={self.delta}; {remedy}"
            )
        if spent > _or_inf(self.target_epsilon) * (1 + _TOLERANCE):
            raise CardMismatchError(
                f"Card promises target_epsilon={self.target_epsilon}, its ledger spends {spent}; "
                "do not publish, or state what was spent as the target."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain dict for strict JSON: null stands for no bound, never NaN or Infinity."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

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
        return cls(**values)

    def to_markdown(self) -> str:
        """The card for readers: what it promises in one sentence, the figures, then the terms."""
        figures = {
            "epsilon (PLD)": epsilon_text(self.epsilon),
            "epsilon (PRV)": (
                "not computed" if self.epsilon_rdp is None else "not resolved by Opacus"
            )
            if self.epsilon_prv is None and self.epsilon is not None
            else epsilon_text(self.epsilon_prv),
            "epsilon (RDP)": "not computed"
            if self.epsilon_rdp is None and self.epsilon is not None
            else epsilon_text(self.epsilon_rdp),
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
            f"{run['steps']:,} steps at rate {run['sampling_rate']:.4g}, "
            f"noise {run['noise_multiplier']:.4g}"
            for run in self.ledger
        ]
        lines = ["# Privacy card", "", explain(self.epsilon, self.delta), ""]
        lines += ["| figure | value |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in figures.items()]
        lines += ["", *(f"- **{name}.** {text}" for name, text in terms.items())]
        for title, items in (("Public inputs", inputs), ("Ledger", runs), ("Limits", self.limits)):
            lines += ["", f"## {title}", "", *(f"- {item}" for item in items or ["none"])]
        return "\n".join(lines) + "\n"


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
