"""`account`: privacy priced before anything is trained."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dpwg.cli.options import Delta

if TYPE_CHECKING:
    from dpwg.privacy.accounting import Epsilons, PrivacyPlan

KNOWN = tyro.conf.create_mutex_group(required=False)


def account(
    *,
    records: int | None = None,
    batch: int | None = None,
    steps: int | None = None,
    epsilon: Annotated[float | None, KNOWN] = None,
    noise_multiplier: Annotated[float | None, KNOWN] = None,
    delta: Delta = None,
    compose: tuple[str, ...] = (),
) -> Any:
    """Answer with noise and epsilon, by PLD, PRV and RDP; or with what several releases give away.

    Args:
        records: how many the private set has
        batch: expected size of a batch
        steps: steps of DP-SGD
        epsilon: the promise; the least noise that keeps it is found
        noise_multiplier: the noise; what it promises is found
        compose: in place of all that: releases from the same records, or their cards
    """
    if compose:
        return _composed(compose, delta)
    if records is None or batch is None or steps is None or epsilon is noise_multiplier is None:
        raise ValueError(
            "Expected --records, --batch, --steps and --epsilon or --noise-multiplier; or "
            "--compose."
        )
    plan = make_plan(records, batch, steps, epsilon, noise_multiplier, delta)
    return {
        "sampling_rate": plan.sampling_rate,
        "steps": plan.steps,
        "delta": plan.delta,
        "records": plan.records,
        "batch": plan.batch_size,
        "noise_multiplier": plan.noise_multiplier,
        **_told(plan.epsilons()),
    }


def _told(spent: Epsilons) -> dict[str, float]:
    by_name = {f"epsilon_{name}": epsilon for name, epsilon in asdict(spent).items()}
    return {"epsilon": spent.pld, **by_name}


def _composed(names: tuple[str, ...], delta: float | None) -> dict[str, Any]:
    """What releases from the same records spend together, by default at their least delta."""
    from dpwg.privacy.accounting import compose
    from dpwg.privacy.card import PrivacyCard
    from dpwg.release.folder import find_checkpoint, load_card

    cards = []
    for name in names:
        if Path(name).is_file():
            cards.append(PrivacyCard.from_json(json.loads(Path(name).read_text())))
            cards[-1].verify()
        else:
            cards.append(load_card(find_checkpoint(name)))
    if len(units := {card.unit for card in cards if card.kind != "public"}) > 1:
        raise ValueError(
            f"Expected cards of one unit, found {len(units)}; what one loses by a release that "
            "protects another is not known."
        )
    ledger, delta = compose(card.ledger for card in cards), delta or min(c.delta for c in cards)
    return {
        "cards": list(names),
        "datasets": sorted({card.dataset for card in cards if card.kind != "public"}),
        "steps": ledger.steps,
        "delta": delta,
        **_told(ledger.epsilons(delta)),
        "sum_of_epsilons": sum(math.inf if c.epsilon is None else c.epsilon for c in cards),
    }


def make_plan(
    records: int,
    batch: int,
    steps: int,
    epsilon: float | None,
    noise_multiplier: float | None,
    delta: float | None,
    max_grad_norm: float = 1.0,  # epsilon does not depend on it
) -> PrivacyPlan:
    """The plan that keeps an epsilon, of which inf is without noise, or that has this noise."""
    from dpwg.cli.console import warn
    from dpwg.privacy.accounting import PrivacyPlan, default_delta
    from dpwg.privacy.curves import doubt_about

    delta = default_delta(records) if delta is None else delta
    sizes: dict[str, Any] = {
        "records": records,
        "batch_size": batch,
        "steps": steps,
        "delta": delta,
        "max_grad_norm": max_grad_norm,
    }
    if noise_multiplier is not None:
        plan = PrivacyPlan(**sizes, noise_multiplier=noise_multiplier)
    else:
        assert epsilon is not None  # one of the two was given
        plan = PrivacyPlan.calibrated(**sizes, target_epsilon=epsilon)
    if doubt := doubt_about(delta, records=records):
        warn(doubt)
    return plan
