"""A white-box audit of private fine-tuning in one run; the bound is `privacy.audit`'s.

m canary records, each with a gradient in coordinates of its own ("Dirac" canaries), join the data
by fair coins, the real `PrivateTraining` runs once, and an attacker reads what reached the
optimizer in each canary's coordinates. That attacker sees all that the guarantee covers: every
weight of every step follows from it. The audit gives a lower bound on epsilon. One above the
ledger's epsilon catches a broken engine; one below it never proves a sound engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dpwg.method.generator import Batch, Generator
from dpwg.privacy.accounting import Ledger, PrivacyPlan
from dpwg.privacy.mechanism import system_generator
from dpwg.privacy.one_run_audit import AuditBound, audit_guesses
from dpwg.training.examples import Examples
from dpwg.training.private import Finetuning, PrivateTraining

EMBEDDINGS = 15
"""With the Linear layer 16 coordinates a canary: clipping by layer would let 4 times as much in."""
PULL = 4.0
"""A canary's gradient in one coordinate, in clip norms: every layer alone is past the bound."""
MICRO_BATCH = 512
STEPS, BATCHES = 20, 4
DELTA = 1e-5
GUESSES = 20
"""One of so many canaries is guessed each way: a tenth of them in all."""


Attacker = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def total_over_steps(readings_TM: NDArray[np.float64]) -> NDArray[np.float64]:
    """A canary's score (M,) is the sum of its readings: finds much signal, or little noise."""
    return readings_TM.sum(axis=0)


def spread_over_steps(readings_TM: NDArray[np.float64]) -> NDArray[np.float64]:
    """A canary's score (M,) is how much its readings vary: finds noise that several steps share.

    What is always there cancels; what is left is in which steps an included canary was drawn.
    """
    return readings_TM.std(axis=0)


ATTACKERS: dict[str, Attacker] = {"total": total_over_steps, "spread": spread_over_steps}


@dataclass(frozen=True, kw_only=True)
class EngineAudit:
    """The best bound that an attacker proved, and what the run's ledger claims at its delta."""

    bound: AuditBound
    attacker: str
    ledger_epsilon: float

    @property
    def refutes_the_ledger(self) -> bool:
        """Whether the engine leaks more than its ledger says. False proves nothing."""
        return self.bound.epsilon > self.ledger_epsilon


class CanaryModel(Generator):
    """Stands in for WaveletGPT: record i alone moves row i of each layer, and nothing else.

    The losses are linear in the parameters, so that gradients do not depend on earlier steps.
    """

    def __init__(self, canaries: int, *, pull: float) -> None:
        super().__init__()
        self.pull = pull
        self.rows = nn.ModuleList(nn.Embedding(canaries, 1) for _ in range(EMBEDDINGS))
        self.linear = nn.Linear(canaries, 1, bias=False)

    def losses(self, batch: Batch) -> Tensor:
        """One loss a record, (B,), from two codes: which canary it is, and 1 if it joined or 0."""
        index_B1, joined_B1 = (code_BPK[:, :, 0] for code_BPK in batch.codes)
        dtype = self.linear.weight.dtype
        zeros_BM = torch.zeros(len(index_B1), self.linear.in_features, dtype=dtype)
        values_B1 = self.linear(zeros_BM.to(index_B1.device).scatter(1, index_B1, 1.0))
        for rows in self.rows:
            values_B1 = values_B1 + rows(index_B1)[:, :, 0]
        return (self.pull * joined_B1.to(dtype) * values_B1)[:, 0]


def canary_examples(included_M: NDArray[np.bool_]) -> Examples:
    """The canaries as examples: one that did not join stays, with a gradient of zero.

    Under Poisson sampling that is the same to every sum as leaving it out, while the number of
    records and with it the sampling rate do not depend on the coins.
    """
    M = len(included_M)
    captions = {
        "states": torch.zeros(M, 1, 1),
        "mask": torch.ones(M, 1, dtype=torch.bool),
        "count": torch.ones(M, dtype=torch.int64),
        "empty_states": torch.zeros(1, 1),
        "empty_mask": torch.ones(1, dtype=torch.bool),
    }
    joined_M = torch.from_numpy(included_M.astype(np.int64))
    codes = {"codes_0": torch.arange(M)[:, None, None], "codes_1": joined_M[:, None, None]}
    return Examples(captions, codes)


def canary_plan(canaries: int, target_epsilon: float) -> PrivacyPlan:
    """A small run to audit: 20 steps of a quarter of the canaries, at delta 1e-5.

    Raises ValueError like `PrivacyPlan`.
    """
    return PrivacyPlan.calibrated(
        records=canaries,
        batch_size=canaries // BATCHES,
        steps=STEPS,
        delta=DELTA,
        max_grad_norm=0.1,
        target_epsilon=target_epsilon,
    )


def audit_private_training(
    plan: PrivacyPlan,
    *,
    k_plus: int,
    k_minus: int,
    confidence: float = 0.95,
    precision: str = "float32",
    generator: np.random.Generator | None = None,
) -> EngineAudit:
    """Run `PrivateTraining` once on `plan.records` canaries and bound its epsilon from below.

    The best of all `ATTACKERS` counts, each at the confidence that makes all of them hold together
    with `confidence` (Bonferroni). Guess numbers are chosen before the run: a tenth of the canaries
    in all is near the best for Gaussian noise. Tests alone pass a `generator`. Raises ValueError
    for a plan without noise, and for numbers out of range.
    """
    if not plan.noise_multiplier:
        raise ValueError("Expected a plan with noise; one without claims nothing to refute.")
    included_M = (generator or system_generator()).random(plan.records) < 0.5
    readings_TM, ledger = canary_readings(
        plan, included_M, precision=precision, generator=generator
    )
    bounds = {
        name: audit_guesses(
            score(readings_TM),
            included_M,
            k_plus=k_plus,
            k_minus=k_minus,
            delta=plan.delta,
            confidence=1 - (1 - confidence) / len(ATTACKERS),
        )
        for name, score in ATTACKERS.items()
    }
    best = max(bounds, key=lambda name: bounds[name].epsilon)
    return EngineAudit(
        bound=replace(bounds[best], confidence=confidence),
        attacker=best,
        ledger_epsilon=ledger.pld_epsilon(plan.delta),
    )


def canary_readings(
    plan: PrivacyPlan,
    included_M: NDArray[np.bool_],
    *,
    precision: str = "float32",
    generator: np.random.Generator | None = None,
) -> tuple[NDArray[np.float64], Ledger]:
    """What reached the optimizer in each canary's coordinates, (T, M), and the run's ledger.

    In clip norms of the sum: a sound engine reads N(0, noise_multiplier**2), plus 1 at most where
    an included canary was in the batch.
    """
    M, norm = len(included_M), plan.max_grad_norm
    model = CanaryModel(M, pull=PULL * norm)
    settings = Finetuning(lora_rank=0, micro_batch=MICRO_BATCH, precision=precision)
    training = PrivateTraining(
        model, canary_examples(included_M), plan, settings, generator=generator
    )
    with optimizer_gradients(model) as gradients:
        for _ in training.run():
            pass
    # Every coordinate holds the same share: their sum over sqrt(coordinates) is the best reading.
    sums_TM = torch.stack([sum_of_coordinates(own, M) for own in gradients]) * plan.batch_size
    return sums_TM.numpy() / (norm * math.sqrt(EMBEDDINGS + 1)), training.ledger


def sum_of_coordinates(gradients: dict[str, Tensor], canaries: int) -> Tensor:
    """The sum over the layers of each canary's coordinates, float64 (M,)."""
    rows = [gradient.double().cpu().reshape(canaries) for gradient in gradients.values()]
    return torch.stack(rows).sum(0)


@contextmanager
def optimizer_gradients(model: nn.Module) -> Iterator[list[dict[str, Tensor]]]:
    """Collect the gradients of `model` by name, once for each step that an optimizer takes."""
    seen: list[dict[str, Tensor]] = []

    def look(*_: Any) -> None:
        named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        if named:
            seen.append({name: gradient.clone() for name, gradient in named.items()})

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()
