"""What a card says in words, by what its ledger holds: public, private or non-private."""

from __future__ import annotations

from typing import Any, Literal

Kind = Literal["public", "private", "non-private"]

_TERMS: dict[str, Any] = {
    "unit": "One image with its captions: a person with several images has several records.",
    "adjacency": "Zero-out: one record is replaced by one that adds nothing to any sum. That is to "
    "add or remove one record where their number is public.",
    "released": "Model weights, configuration and this card; not the run's losses, gradient norms, "
    "optimizer state or random state.",
    "accesses_covered": "Every gradient step that the released weights depend on; nothing else "
    "that was computed from the sensitive records is released.",
    "tuning_not_covered": "Choices made by looking at private results (steps, clip norm, learning "
    "rate, checkpoint) are not covered by epsilon.",
    "accountant": "PLD (dp-accounting); RDP (dp-accounting) and PRV (Opacus) as a cross-check.",
}
GROUP_UNIT = (
    "One group: all images with the same {column}, with their captions. A record of this card is a "
    "group. Each visit of a step draws one image of the group."
)
"""Up to the colon it tells cards of groups apart, those that are out in the world too: keep it."""
_IMAGE_LIMIT = "Protects an image, not a person who appears in several."
_COUNT_LIMIT = "The number of records and the sampling rate are treated as public."
_GROUP_LIMITS = {
    _IMAGE_LIMIT: "Protects a group as {column} tells it, not whoever is in images of several "
    "groups.",
    _COUNT_LIMIT: "The number of groups and the sampling rate are treated as public.",
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
            "Is for this release alone: what several from the same records give away adds up "
            "(`account --compose` tells to how much), and one without a bound leaves none.",
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


def card_terms(kind: Kind, *, group_column: str | None, left_out: bool) -> dict[str, Any]:
    """The texts of a card, by the names of its fields."""
    terms = _TERMS | _TERMS_BY_KIND[kind]
    limits: tuple[str, ...] = terms["limits"]
    if group_column is not None:
        column = repr(group_column)
        terms["unit"] = GROUP_UNIT.format(column=column)
        own = (_GROUP_LIMITS.get(limit, limit) for limit in limits)
        limits = tuple(limit.replace("{column}", column) for limit in own)
    return terms | {"limits": (*limits, _LEFT_OUT) if left_out else limits}
