"""Training a generator on public examples."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpwg.config import Count, Decay, Natural, Share
from dpwg.method.captions import TextEncoder
from dpwg.method.generator import Generator
from dpwg.privacy.accounting import Ledger
from dpwg.privacy.card import PrivacyCard
from dpwg.release.folder import Release, save_release
from dpwg.release.shared import check_same_tokenizer, load_tokenizer
from dpwg.training.encodings import encode_examples
from dpwg.training.examples import Examples
from dpwg.training.optimizer import Job, Progress, PublicTraining, Weights, descend
from dpwg.training.processes import Ranks
from dpwg.training.run_state import fingerprint

if TYPE_CHECKING:
    from dpwg.training.presets import Preset


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


def make_public(
    job: Job,
    encoder: TextEncoder,
    preset: Preset,
    settings: Pretraining,
    *,
    tokenizer_folder: Path,
    inputs: tuple[dict[str, str], ...],
    delta: float = 1e-5,
    base: Release | None = None,
    upsampler: str | None = None,
    checkpointing: bool = False,
    compiled: bool = False,
) -> Iterator[Progress]:
    """Train a preset's generator on public records, from `base` on if any, and save the release.

    Its card names the public `inputs`, and those of the base.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    if base:
        check_same_tokenizer(tokenizer_folder, base.tokenizer)
    torch.manual_seed(settings.seed)
    model = preset.new_model(tokenizer, encoder)
    if base:
        model.load_state_dict(base.model.state_dict())
    model.checkpointing = checkpointing
    examples = yield from encode_examples(job.records, encoder, tokenizer, job.cache)
    yield from job.run(
        model,
        settings,
        lambda own, few, folder: pretrain(own, examples, few, folder, job.ranks, compiled=compiled),
    )
    if not job.ranks.leads:
        return
    before = base.card.public_inputs if base else ()
    card = PrivacyCard.from_ledger(
        Ledger(),
        delta=delta,
        dataset="none: public data only",
        records=0,
        max_grad_norm=None,
        public_inputs=(*inputs, *(item for item in before if item not in inputs)),
        target_epsilon=0.0,
    )
    release = Release(
        model=model.cpu(),
        tokenizer=tokenizer,
        card=card,
        text_encoder=base.text_encoder if base else encoder.id,
        family=preset.family,
        upsampler=upsampler,
    )
    save_release(job.out, release, tokenizer_folder=tokenizer_folder)


def pretrain(
    model: Generator,
    examples: Examples,
    settings: Pretraining,
    folder: Path | None,
    ranks: Ranks | None = None,
    *,
    compiled: bool = False,
) -> Iterator[Progress]:
    """Train in place; the model ends with averaged weights. Resumes from `folder`, if there is one.

    With several `ranks` each takes its share of every batch; the result is that of one process.
    A private run is never `compiled` by torch.compile: its engine has to see every layer.
    """
    ranks = ranks or Ranks()
    settings = replace(settings, precision=ranks.agree_on_precision(settings.precision))
    weights = Weights(model.to(ranks.device), settings)
    run = {"settings": settings.to_json(), "base": fingerprint(model), "data": examples.digest}
    if compiled:
        weights.worker.compile()

    def loss_of_step(generator: torch.Generator) -> Tensor:
        chosen_B = _chosen(len(examples), settings, weights.steps)
        draw_B = torch.rand(settings.batch, generator=generator, dtype=torch.float64)
        dropped_B = torch.rand(settings.batch, generator=generator) < settings.caption_dropout
        batch = examples.batch(
            ranks.share(chosen_B), draw_B=ranks.share(draw_B), dropped_B=ranks.share(dropped_B)
        ).to(ranks.device)
        return weights.worker.losses(batch).sum() / settings.batch

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
