"""Training the super-resolution model on public images only: what it will see is decoded codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dpwg.config import Count, Decay, Natural, SuperResolutionConfig
from dpwg.device import fast_autocast
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.method.wavelet import coarse_image
from dpwg.training.critic import Critic
from dpwg.training.encodings import full_images
from dpwg.training.optimizer import Job, Progress, PublicTraining, Weights, descend
from dpwg.training.processes import Ranks
from dpwg.training.run_state import fingerprint
from dpwg.upsampling.superresolution import SuperResolution, band_error, save_superresolution


@dataclass(frozen=True, kw_only=True)
class SuperResolutionTraining(PublicTraining):
    """Settings. `images` is how many of the set's are used at most.

    Of each image up to `disturbed` of the detail codes are moved to one of the `neighbours` nearest
    in their codebook, as sampled codes seldom fit together exactly. After `alone`, a share of the
    steps, a critic joins (`training.critic`): `critic` and `matching` are the weights of its two
    terms beside the error of pixels and bands, and without any of them it stays away.
    """

    images: Count = 40_000
    steps: Count = 6000
    batch: Count = 32
    warmup: Natural = 100
    weight_decay: float = 0.01
    ema_decay: Decay = 0.998
    disturbed: float = 0.3
    neighbours: int = 16
    alone: float = 0.3
    critic: float = 0.0
    matching: float = 0.0


def make_upsampler(
    job: Job,
    config: SuperResolutionConfig,
    settings: SuperResolutionTraining,
    tokenizer: SpectralTokenizer,
) -> Iterator[Progress]:
    """Train the super-resolution model on public records and save it."""
    config = replace(config, coarse_size=tokenizer.config.coarse_size)
    size = config.coarse_size << config.levels
    images_NCHW = yield from full_images(job.records, size, settings.images, job.cache)
    torch.manual_seed(settings.seed)
    model = SuperResolution(config)
    yield from job.run(
        model,
        settings,
        lambda own, few, folder: train_superresolution(
            own, tokenizer, images_NCHW, few, job.ranks, folder
        ),
    )
    if job.ranks.leads:
        save_superresolution(job.out, model.cpu())


def train_superresolution(
    model: SuperResolution,
    tokenizer: SpectralTokenizer,
    images_NCHW: Tensor,
    settings: SuperResolutionTraining,
    ranks: Ranks | None = None,
    folder: Path | None = None,
) -> Iterator[Progress]:
    """Train in place on uint8 images (N, 3, S, S) of the model's full size.

    The tokenizer encodes and decodes their coarse images on the way. The model ends with averaged
    weights; with several `ranks` each takes its share of every batch. Resumes from `folder`, if
    there is one.
    """
    ranks = ranks or Ranks()
    settings = replace(settings, precision=ranks.agree_on_precision(settings.precision))
    levels = model.config.levels
    weights = Weights(model.to(ranks.device), settings)
    run = {
        "settings": settings.to_json(),
        "base": fingerprint(model),
        "tokenizer": fingerprint(tokenizer),
    }
    tokenizer = tokenizer.to(ranks.device)
    critic = Critic.asked_for(ranks, settings)
    tables = [_nearest(book.vectors_KD, settings.neighbours) for book in tokenizer.books()]

    def loss_of_step(generator: torch.Generator) -> Tensor:
        chosen_B = torch.randint(len(images_NCHW), (settings.batch,), generator=generator)
        flipped_B = torch.rand(settings.batch, generator=generator) < 0.5
        noise = torch.Generator().manual_seed(int(chosen_B[0]) + settings.batch * weights.steps)
        target_BCHW = images_NCHW[ranks.share(chosen_B)].to(ranks.device).float() / 255
        turned_B = ranks.share(flipped_B).to(ranks.device)
        target_BCHW[turned_B] = target_BCHW[turned_B].flip(-1)
        with fast_autocast(ranks.device):
            codes = tokenizer.encode(coarse_image(target_BCHW, levels))
            coarse_BChw = tokenizer.decode(_disturbed(codes, tables, settings, noise))
        image_BCHW = weights.worker(coarse_BChw.float())
        loss = band_error(image_BCHW, target_BCHW, levels)
        if critic and weights.steps >= settings.alone * settings.steps:
            loss = loss + critic.loss(image_BCHW, target_BCHW, coarse_BChw.float())
        return loss * len(target_BCHW) / settings.batch

    yield from descend(weights, settings, ranks, loss_of_step, folder, run, critic)


def _nearest(vectors_KD: Tensor, count: int) -> Tensor:
    """Each code's `count` nearest others, int64 (K, count)."""
    distance_KK = torch.cdist(vectors_KD.detach(), vectors_KD.detach())
    return distance_KK.topk(min(count + 1, len(vectors_KD)), largest=False).indices[:, 1:]


def _disturbed(
    codes: Sequence[Tensor],
    tables: Sequence[Tensor],
    settings: SuperResolutionTraining,
    generator: torch.Generator,
) -> list[Tensor]:
    """The codes with some details moved to near ones; the coarsest scale stays as it is."""
    B = len(codes[0])
    share_B11 = torch.rand(B, 1, 1, generator=generator) * settings.disturbed
    out = [codes[0]]
    for index_BPK, table_KN in zip(codes[1:], tables[1:], strict=True):
        moved_BPK = torch.rand(index_BPK.shape, generator=generator) < share_B11
        place_BPK = torch.randint(table_KN.shape[1], index_BPK.shape, generator=generator)
        device = index_BPK.device
        near_BPK = table_KN[index_BPK, place_BPK.to(device)]
        out.append(torch.where(moved_BPK.to(device), near_BPK, index_BPK))
    return out
