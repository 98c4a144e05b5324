"""The steps of pretraining, super-resolution and the reranker, whatever their loss.

The tokenizer has steps of its own: between them its codes are revived.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from dpwg.training.optimizer import M, Weights
from dpwg.training.processes import Ranks
from dpwg.training.progress import Progress, warmup_cosine


class Schedule(Protocol):
    """The settings that these trainings have in common."""

    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def report_every(self) -> int: ...


def descend(
    weights: Weights[M],
    settings: Schedule,
    ranks: Ranks,
    loss_of_step: Callable[[], Tensor],
    *,
    after_step: Callable[[], None] = lambda: None,
) -> Iterator[Progress]:
    """Take the steps that are left, and end with the averaged weights.

    `loss_of_step` computes this rank's share of the next step's loss with `weights.worker`: the
    shares add up to the mean of the batch. Gradients are clipped together: no record is protected.
    """
    own = dict(weights.worker.named_parameters())
    losses: list[float] = []
    started, first = time.monotonic(), weights.steps
    while weights.steps < settings.steps:
        loss = loss_of_step()
        found = torch.autograd.grad(
            loss, list(own.values()), allow_unused=True, materialize_grads=True
        )
        gradients = {name: g.float() for name, g in zip(own, found, strict=True)}
        total = loss.detach()
        ranks.sum_([total, *gradients.values()])
        factor = warmup_cosine(weights.steps, settings.steps, settings.warmup)
        weights.clipped_step(gradients, max_grad_norm=settings.max_grad_norm, factor=factor)
        losses.append(total.item())
        after_step()
        if weights.steps % settings.report_every == 0 or weights.steps == settings.steps:
            yield Progress(
                step=weights.steps,
                steps=settings.steps,
                examples=(weights.steps - first) * settings.batch,
                seconds=time.monotonic() - started,
                loss=sum(losses) / len(losses),
            )
            losses.clear()
    weights.finish()
