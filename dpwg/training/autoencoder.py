"""Training DP-LDM's autoencoder on public images: for pixels and bands, and for normal latents.

After a while a critic joins, if it is asked for, as in Rombach et al. (2022, arXiv 2112.10752).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dpwg.config import AutoencoderConfig, Count, Decay, Natural
from dpwg.method.rivals.latents import LatentAutoencoder
from dpwg.release.shared import save_tokenizer
from dpwg.training.critic import Critic
from dpwg.training.encodings import coarse_images
from dpwg.training.optimizer import Job, Progress, PublicTraining, Weights, descend
from dpwg.training.processes import Ranks
from dpwg.training.run_state import fingerprint
from dpwg.upsampling.superresolution import band_error

BANDS = 2
"""Levels of details whose errors count."""
MEASURED = 512
"""Images whose latents tell their scale."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining(PublicTraining):
    """Settings; `normal` is the weight of the divergence from a normal distribution, the others are
    those of `SuperResolutionTraining`.
    """

    steps: Count = 6000
    batch: Count = 16
    warmup: Natural = 100
    ema_decay: Decay = 0.998
    normal: float = 1e-6
    alone: float = 0.6
    critic: float = 0.0
    matching: float = 0.0


def make_autoencoder(
    job: Job, config: AutoencoderConfig, settings: AutoencoderTraining
) -> Iterator[Progress]:
    """Train an autoencoder on public records and save it, as a tokenizer is."""
    images_NCHW = yield from coarse_images(job.records, config.coarse_size, job.cache)
    torch.manual_seed(settings.seed)
    model = LatentAutoencoder(config)
    yield from job.run(
        model,
        settings,
        lambda own, few, folder: train_autoencoder(own, images_NCHW, few, job.ranks, folder),
    )
    if job.ranks.leads:
        save_tokenizer(job.out, model.cpu())


def train_autoencoder(
    model: LatentAutoencoder,
    images_NCHW: Tensor,
    settings: AutoencoderTraining,
    ranks: Ranks | None = None,
    folder: Path | None = None,
) -> Iterator[Progress]:
    """Train in place on uint8 images (N, 3, S, S); the latents end with a deviation of 1.

    Resumes from `folder`, if there is one.
    """
    ranks = ranks or Ranks()
    settings = replace(settings, precision=ranks.agree_on_precision(settings.precision))
    weights = Weights(model.to(ranks.device), settings)
    run = {"settings": settings.to_json(), "base": fingerprint(model), "images": len(images_NCHW)}
    critic = Critic.asked_for(ranks, settings)

    def loss_of_step(generator: torch.Generator) -> Tensor:
        chosen_B = ranks.share(
            torch.randint(len(images_NCHW), (settings.batch,), generator=generator)
        )
        shape = (settings.batch, model.config.latent_channels, *(model.config.size,) * 2)
        noise_BChw = ranks.share(torch.randn(shape, generator=generator)).to(ranks.device)
        target_BCHW = images_NCHW[chosen_B].to(ranks.device).float() / 255
        mean_BChw, log_BChw = weights.worker.posterior(target_BCHW.to(weights.worker.network.dtype))
        mean_BChw, log_BChw = mean_BChw.float(), log_BChw.float()
        latent_BChw = mean_BChw + (log_BChw / 2).exp() * noise_BChw
        image_BCHW = weights.worker.image(latent_BChw.to(weights.worker.network.dtype)).float()
        away = (mean_BChw.square() + log_BChw.exp() - 1 - log_BChw).sum((1, 2, 3)).mean() / 2
        loss = band_error(image_BCHW, target_BCHW, BANDS) + settings.normal * away
        if critic and weights.steps >= settings.alone * settings.steps:
            loss = loss + critic.loss(image_BCHW, target_BCHW, F.avg_pool2d(target_BCHW, 4))
        return loss * len(target_BCHW) / settings.batch

    yield from descend(weights, settings, ranks, loss_of_step, folder, run, critic)
    with torch.no_grad():
        few_BCHW = images_NCHW[:MEASURED].to(ranks.device).float() / 255
        found = [model.posterior(part_BCHW)[0] for part_BCHW in few_BCHW.split(64)]
        model.scale.copy_(torch.cat(found).std())
