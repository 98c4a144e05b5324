"""What a checkpoint promises: in a word, in a few, and in one sentence beside its whole card."""

from __future__ import annotations

import re

import gradio as gr

from dpwg.privacy.accounting import epsilon_text
from dpwg.privacy.card import PrivacyCard
from dpwg.privacy.curves import explain
from dpwg.release.folder import find_checkpoint, load_card
from dpwg.ui.own import YOURS, own_card
from dpwg.ui.runs import Run


def describe_checkpoint(name: str, own: Run | None = None) -> tuple[str, str]:
    """What a checkpoint promises, in one sentence and as its whole card, both Markdown."""
    try:
        card = own_card(own) if name == YOURS else load_card(find_checkpoint(name))
    except (ValueError, FileNotFoundError) as error:
        raise gr.Error(str(error)) from error
    if card.epsilon is None:
        promise = "No privacy"
    elif card.kind == "public":
        promise = "Public data only, ε = 0"
    else:
        promise = f"ε = {epsilon_text(card.epsilon)}{_unit(card)} at δ = {card.delta:.4g}"
    told = explain(card.ledger)
    if group := _group(card):
        a = "an" if group[0] in "aeiou" else "a"
        told = told.replace("a training record", f"{a} {group} in the training set")
    return f"**{promise}.** {told}", card.to_markdown()


def author(card: PrivacyCard) -> str:
    """Who drew a coarse picture: what its model promises, in a few words."""
    if card.epsilon is None:
        return "model trained without privacy"
    if card.kind == "public":
        return "public model (ε = 0)"
    return f"private model (ε = {epsilon_text(card.epsilon)}{_unit(card)})"


def label(card: PrivacyCard) -> str:
    """A column's title."""
    if card.epsilon is None:
        return "no privacy"
    if card.kind == "public":
        return "public, ε = 0"
    return f"ε = {epsilon_text(card.epsilon)}{_unit(card)}"


def _unit(card: PrivacyCard) -> str:
    """What a promise is made to, where it is more than an image: it tells two of one ε apart."""
    return f" per {group}" if (group := _group(card)) else ""


def _group(card: PrivacyCard) -> str:
    """What a promise is made to in place of an image, by the column that tells groups apart: a
    "group" where that is not a plain word.
    """
    if not card.of_groups:
        return ""
    found = re.search(r"the same '([a-z]+)'", card.unit)
    return found[1] if found else "group"
