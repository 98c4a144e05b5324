"""Training WaveletGPT on public examples."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dpwg.config import Count, Decay, Natural, Share
from dpwg.method.transformer import WaveletGPT
from dpwg.training.examples import Examples
from dpwg.training.optimizer import Progress, PublicTraining, Weights, descend, resume
from dpwg.training.processes import Ranks
from dpwg.training.run_state import fingerprint, locked


@dataclass(frozen=True, kw_only=True)
class Pretraining(PublicTraining):
    """Settings of public pretraining."""

    steps: Count = 6000
    batch: Count = 64
    warmup: Natural = 200
    weight_decay: float = 0.05
    ema_decay: Decay = 0.998
    caption_dropout: Share = 0.1
    report_every: Count = 20
    save_every: Count = 500


def pretrain(
    model: WaveletGPT,
    examples: Examples,
    settings: Pretraining,
    folder: Path | None,
    ranks: Ranks | None = None,
    *,
    compiled: bool = False,
) -> Iterator[Progress]:
    """Train in place; the model ends with averaged weights. Resumes from `folder`, if there is one.

    With several `ranks` each takes its share of every batch; the result is that of one process.
    What is `compiled` by torch.compile is the loss; a private run never is, whose engine has to see
    every layer.
    """
    ranks = ranks or Ranks()
    settings = replace(settings, precision=ranks.agree_on_precision(settings.precision))
    weights = Weights(model.to(ranks.device), settings)
    run = {"settings": settings.to_json(), "base": fingerprint(model), "data": examples.digest}
    losses_of = weights.worker.negative_log_likelihood
    if compiled:
        losses_of = torch.compile(losses_of)

    def loss_of_step() -> Tensor:
        chosen_B = _chosen(len(examples), settings, weights.steps)
        draw_B = torch.rand(settings.batch, generator=generator)
        dropped_B = torch.rand(settings.batch, generator=generator) < settings.caption_dropout
        batch = examples.batch(
            ranks.share(chosen_B), draw_B=ranks.share(draw_B), dropped_B=ranks.share(dropped_B)
        ).to(ranks.device)
        losses_B: Tensor = losses_of(batch.states_BLD, batch.mask_BL, batch.codes)
        return losses_B.sum() / settings.batch

    with locked(folder if ranks.leads else None):
        resume(weights, folder, run)
        generator = torch.Generator().manual_seed(settings.seed + weights.steps)
        yield from descend(weights, settings, ranks, loss_of_step, folder, run)


def _chosen(count: int, settings: Pretraining, step: int) -> Tensor:
    """The examples of a step: each of them once before any comes again, in an order by the seed."""
    place_B = torch.arange(step * settings.batch, (step + 1) * settings.batch)
    epoch_B = place_B // count
    chosen_B = torch.empty_like(place_B)
    for epoch in epoch_B.unique().tolist():
        now_B = epoch_B == epoch
        chosen_B[now_B] = _order(count, settings.seed + epoch)[place_B[now_B] % count]
    return chosen_B


@functools.lru_cache(maxsize=1)
def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
