"""Training the spectral tokenizer, on public images only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dpwg.config import Config, check_run
from dpwg.device import fast_autocast
from dpwg.tokenizer import SpectralTokenizer
from dpwg.training.progress import Progress, warmup_cosine
from dpwg.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining(Config):
    """Settings. Codes that nothing used for `revive_every` steps are revived, in the first half."""

    steps: int = 1500
    batch: int = 64
    learning_rate: float = 8e-4
    warmup: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 0.2
    commitment: float = 0.25
    revive_every: int = 500
    ema_decay: float = 0.99
    report_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        check_run(self)


def train_tokenizer(
    tokenizer: SpectralTokenizer,
    images_NCHW: Tensor,
    settings: TokenizerTraining,
    ranks: Ranks | None = None,
) -> Iterator[Progress]:
    """Train in place on uint8 images (N, 3, S, S); the tokenizer ends with averaged weights.

    The loss is the squared error of the wavelet coefficients, which by Parseval is that of the
    pixels, for every partial decode at once.
    """
    ranks = ranks or Ranks()
    generator = torch.Generator().manual_seed(settings.seed)
    tokenizer.initialise_from(images_NCHW[:8000].float() / 255, seed=settings.seed)
    ranks.broadcast_(tokenizer.to(ranks.device).parameters())
    optimizer = torch.optim.AdamW(
        tokenizer.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    average = AveragedModel(tokenizer, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
    used = [torch.zeros(size, device=ranks.device) for size in tokenizer.config.codebook_sizes]
    losses: list[float] = []
    started = time.monotonic()
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            factor = warmup_cosine(step, settings.steps, settings.warmup)
            group["lr"] = settings.learning_rate * factor
        chosen = torch.randint(len(images_NCHW), (settings.batch,), generator=generator)
        image_BCHW = images_NCHW[ranks.share(chosen)].to(ranks.device).float() / 255
        patches = tokenizer.patches(image_BCHW)
        with fast_autocast(image_BCHW.device):
            result = tokenizer(patches)
        error = _pixel_error(tokenizer, result.decoded, patches)
        commitment = _pixel_error(tokenizer, result.latents, [q.detach() for q in result.quantized])
        optimizer.zero_grad(set_to_none=True)
        share = len(image_BCHW) / settings.batch
        (share * (error + settings.commitment * commitment)).backward()
        total = share * error.detach()
        ranks.sum_([total, *(p.grad for p in tokenizer.parameters() if p.grad is not None)])
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), settings.max_grad_norm)
        optimizer.step()
        average.update_parameters(tokenizer)
        losses.append(total.item())
        for seen, indices in zip(used, result.indices, strict=True):
            seen[indices.flatten()] = 1
        if (step + 1) % settings.revive_every == 0 and step < settings.steps // 2:
            ranks.sum_(used)
            for codebook, z, seen in zip(tokenizer.books(), result.latents, used, strict=True):
                codebook.revive(seen == 0, z.detach().flatten(0, 2), generator)
                seen.zero_()
            ranks.broadcast_(book.vectors_KD for book in tokenizer.books())
        if (step + 1) % settings.report_every == 0 or step + 1 == settings.steps:
            yield Progress(
                step=step + 1,
                steps=settings.steps,
                examples=(step + 1) * settings.batch,
                seconds=time.monotonic() - started,
                loss=sum(losses) / len(losses),
            )
            losses.clear()
    tokenizer.load_state_dict(average.module.state_dict())


def _pixel_error(tokenizer: SpectralTokenizer, a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Mean squared error a pixel and channel between two sets of patches (Parseval)."""
    squares = (
        torch.stack([(x - y).square().sum() for x, y in zip(a, b, strict=True)])
        * tokenizer.spread_S.square()
    )
    return squares.sum() / (len(a[0]) * 3 * tokenizer.config.coarse_size**2)
