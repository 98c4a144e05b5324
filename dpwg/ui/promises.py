"""What a checkpoint promises: in a word, in a few, and in one sentence beside its whole card."""

from __future__ import annotations

import re

from dpwg.privacy.accounting import epsilon_text
from dpwg.privacy.card import PrivacyCard
from dpwg.privacy.curves import explain
from dpwg.release.folder import find_checkpoint, load_card
from dpwg.ui.own import YOURS, own_card
from dpwg.ui.parts import in_words
from dpwg.ui.runs import Run


def describe_checkpoint(name: str, own: Run | None = None) -> tuple[str, str]:
    """What a checkpoint promises, in one sentence and as its whole card, both Markdown."""
    with in_words():
        card = own_card(own) if name == YOURS else load_card(find_checkpoint(name))
    short = {
        "private": f"{label(card)} at δ = {card.delta:.4g}",
        "public": "Public data only, ε = 0",
    }.get(card.kind, "No privacy")
    told = explain(card.ledger)
    if group := _group(card):
        a = "an" if group[0] in "aeiou" else "a"
        told = told.replace("a training record", f"{a} {group} in the training set")
    return f"**{short}.** {told}", card.to_markdown()


def author(card: PrivacyCard) -> str:
    """Who drew a coarse picture: what its model promises, in a few words."""
    return {
        "private": f"private model ({label(card)})",
        "public": "public model (ε = 0)",
    }.get(card.kind, "model trained without privacy")


def label(card: PrivacyCard) -> str:
    """A column's title: epsilon, and what it is for where that is more than an image, which tells
    two of one epsilon apart.
    """
    if card.kind != "private":
        return "public, ε = 0" if card.kind == "public" else "no privacy"
    group = _group(card)
    return f"ε = {epsilon_text(card.epsilon)}" + (f" per {group}" if group else "")


def _group(card: PrivacyCard) -> str:
    """What a promise is made to in place of an image, by the column that tells groups apart: a
    "group" where that is not a plain word.
    """
    if not card.of_groups:
        return ""
    found = re.search(r"the same '([a-z]+)'", card.unit)
    return found[1] if found else "group"
