"""`account`: privacy priced before anything is trained."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dpwg.cli.options import Delta

if TYPE_CHECKING:
    from dpwg.privacy.accounting import PrivacyPlan

KNOWN = tyro.conf.create_mutex_group(required=True)


def account(
    *,
    records: int,
    batch: int,
    steps: int,
    epsilon: Annotated[float | None, KNOWN] = None,
    noise_multiplier: Annotated[float | None, KNOWN] = None,
    delta: Delta = None,
) -> Any:
    """Answer with noise and epsilon, by PLD, PRV and RDP.

    Args:
        records: how many the private set has
        batch: expected size of a batch
        steps: steps of DP-SGD
        epsilon: the promise; the least noise that keeps it is found
        noise_multiplier: the noise; what it promises is found
    """
    plan = make_plan(records, batch, steps, epsilon, noise_multiplier, delta)
    spent = plan.epsilons()
    return {
        "sampling_rate": plan.sampling_rate,
        "steps": plan.steps,
        "delta": plan.delta,
        "records": plan.records,
        "batch": plan.batch_size,
        "noise_multiplier": plan.noise_multiplier,
        "epsilon": spent.pld,
        "epsilon_pld": spent.pld,
        "epsilon_prv": spent.prv,
        "epsilon_rdp": spent.rdp,
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
    from dpwg.privacy.accounting import PrivacyPlan, default_delta

    sizes: dict[str, Any] = {
        "records": records,
        "batch_size": batch,
        "steps": steps,
        "delta": default_delta(records) if delta is None else delta,
        "max_grad_norm": max_grad_norm,
    }
    if epsilon == math.inf:
        noise_multiplier = 0.0
    if noise_multiplier is not None:
        return PrivacyPlan(**sizes, noise_multiplier=noise_multiplier)
    assert epsilon is not None  # one of the two was given
    return PrivacyPlan.calibrated(**sizes, target_epsilon=epsilon)
