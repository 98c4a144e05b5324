"""Sentences about a portrait, from its attributes. The wording is public."""

from __future__ import annotations

import random
from collections.abc import Sequence


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return ("an " if phrase[0].lower() in "aeiou" else "a ") + phrase


def compose(
    rng: random.Random,
    *,
    subject: str,
    features: Sequence[str],
    background: str,
    clothes: str | None = None,
    expression: str | None = None,
) -> str:
    """One sentence, its wording and the order of its parts drawn from `rng`."""
    features = rng.sample(features, len(features))
    looks = " and ".join(filter(None, (", ".join(features[:-1]), features[-1])))
    who = article(subject)
    mood = [expression] if expression else []
    wearing = [f"wearing {clothes}"] if clothes else []
    dressed = f" in {clothes}" if clothes else ""
    plain = f"{background} background"
    clauses = rng.choice(
        (
            [f"{who} with {looks}", *wearing, *mood, f"on {article(plain)}"],
            [f"portrait of {who}{dressed} with {looks}", *mood, plain],
            [plain, f"{who}{dressed} with {looks}", *mood],
            [
                f"{who} {expression or ''}".strip(),
                f"with {looks}",
                *wearing,
                f"against {article(plain)}",
            ],
            [looks, *([clothes] if clothes else []), *mood, plain],
        )
    )
    sentence = ", ".join(clauses)
    return sentence[0].upper() + sentence[1:] + rng.choice((".", ""))
