"""Training the spectral tokenizer, on public images only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dpwg.config import Config, Count, Decay, Natural, Positive, TokenizerConfig
from dpwg.device import fast_autocast
from dpwg.method.codebook import Codebook
from dpwg.method.families import new_tokenizer
from dpwg.method.predictive import PredictiveTokenizer
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.release.shared import save_tokenizer
from dpwg.training.encodings import coarse_images
from dpwg.training.optimizer import Job, Progress, warmup_cosine
from dpwg.training.processes import Ranks


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining(Config):
    """Settings. Codes that nothing used for `revive_every` steps are revived, in the first half.

    A predictive tokenizer first learns for `foresee_steps` what is likely, then gets its codebooks
    from what that leaves.
    """

    steps: Count = 1500
    batch: Count = 64
    learning_rate: Positive = 8e-4
    warmup: Natural = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 0.2
    commitment: float = 0.25
    codebook_decay: float = 0.99
    foresee_steps: int = 400
    revive_every: Count = 500
    ema_decay: Decay = 0.99
    report_every: Count = 50
    seed: int = 0


def make_tokenizer(
    job: Job, config: TokenizerConfig, settings: TokenizerTraining
) -> Iterator[Progress]:
    """Train a tokenizer on public records and save it."""
    images_NCHW = yield from coarse_images(job.records, config.coarse_size, job.cache)
    torch.manual_seed(settings.seed)
    tokenizer = new_tokenizer(config)
    yield from job.run(
        tokenizer, settings, lambda own, few, _: train_tokenizer(own, images_NCHW, few, job.ranks)
    )
    if job.ranks.leads:
        save_tokenizer(job.out, tokenizer.cpu())


def train_tokenizer(
    tokenizer: SpectralTokenizer,
    images_NCHW: Tensor,
    settings: TokenizerTraining,
    ranks: Ranks | None = None,
) -> Iterator[Progress]:
    """Train in place on uint8 images (N, 3, S, S); the tokenizer ends with averaged weights.

    The loss is the squared error of the wavelet coefficients, which by Parseval is that of the
    pixels, for every partial decode at once. Each batch is mirrored half of the time.
    """
    ranks = ranks or Ranks()
    generator = torch.Generator().manual_seed(settings.seed)
    tokenizer.to(ranks.device)
    if isinstance(tokenizer, PredictiveTokenizer):
        _learn_to_foresee(tokenizer, images_NCHW, settings, ranks, generator)
    start = torch.randperm(len(images_NCHW), generator=generator)[:8000]
    tokenizer.initialise_from(images_NCHW[start].to(ranks.device).float() / 255, seed=settings.seed)
    ranks.broadcast_(tokenizer.parameters())
    books = [_Means(book, settings.codebook_decay) for book in tokenizer.books()]
    trained = [p for name, p in tokenizer.named_parameters() if not name.startswith("codebooks")]
    optimizer = torch.optim.AdamW(
        trained,
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    average = AveragedModel(tokenizer, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
    losses: list[float] = []
    started = time.monotonic()
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            factor = warmup_cosine(step, settings.steps, settings.warmup)
            group["lr"] = settings.learning_rate * factor
        patches = tokenizer.patches(_batch(images_NCHW, settings.batch, ranks, generator))
        with fast_autocast(ranks.device):
            result = tokenizer(patches)
        error = _pixel_error(tokenizer, result.decoded, patches)
        if result.foreseen:
            other = _pixel_error(tokenizer, result.foreseen, patches[1:], first=1)
        else:
            quantized = [q.detach() for q in result.quantized]
            other = settings.commitment * _pixel_error(tokenizer, result.latents, quantized)
        optimizer.zero_grad(set_to_none=True)
        share = len(patches[0]) / settings.batch
        (share * (error + other)).backward()
        total = share * error.detach()
        ranks.sum_([total, *(p.grad for p in trained if p.grad is not None)])
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        for book, z, index in zip(books, result.latents, result.indices, strict=True):
            book.update(z.detach().flatten(0, 2), index.flatten(), ranks)
        average.update_parameters(tokenizer)
        losses.append(total.item())
        if (step + 1) % settings.revive_every == 0 and step < settings.steps // 2:
            for book, z in zip(books, result.latents, strict=True):
                book.revive(z.detach().flatten(0, 2), generator, ranks)
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


class _Means:
    """A codebook whose vectors follow the mean of what they stand for (arXiv 1711.00937, A.1)."""

    def __init__(self, book: Codebook, decay: float) -> None:
        self._vectors_KD, self._book, self._decay = (
            book.vectors_KD.requires_grad_(False),
            book,
            decay,
        )
        self._count_K: Tensor | None = None
        self._used_K = torch.zeros(len(self._vectors_KD), device=self._vectors_KD.device)

    @torch.no_grad()
    def update(self, latents_ND: Tensor, index_N: Tensor, ranks: Ranks) -> None:
        """Move every vector towards the mean of the latents that it was nearest to."""
        count_K = torch.bincount(index_N, minlength=len(self._vectors_KD)).float()
        sums_KD = torch.zeros_like(self._vectors_KD).index_add_(0, index_N, latents_ND.float())
        ranks.sum_([count_K, sums_KD])
        if self._count_K is None:
            self._count_K = torch.full_like(count_K, float(count_K.mean()))
            self._sums_KD = self._vectors_KD * self._count_K[:, None]
        self._count_K.lerp_(count_K, 1 - self._decay)
        self._sums_KD.lerp_(sums_KD, 1 - self._decay)
        self._vectors_KD.copy_(self._sums_KD / self._count_K.clamp(min=1e-6)[:, None])
        self._used_K += count_K

    @torch.no_grad()
    def revive(self, latents_ND: Tensor, generator: torch.Generator, ranks: Ranks) -> None:
        """Move what nothing used since the last time to latents of the batch."""
        dead_K = self._used_K == 0
        self._book.revive(dead_K, latents_ND, generator)
        ranks.broadcast_([self._vectors_KD])
        assert self._count_K is not None
        self._count_K[dead_K] = self._count_K.mean()
        self._sums_KD[dead_K] = self._vectors_KD[dead_K] * self._count_K[dead_K, None]
        self._used_K.zero_()


def _learn_to_foresee(
    tokenizer: PredictiveTokenizer,
    images_NCHW: Tensor,
    settings: TokenizerTraining,
    ranks: Ranks,
    generator: torch.Generator,
) -> None:
    """Train what foresees details, from images with about the noise that codes will leave."""
    optimizer = torch.optim.AdamW(tokenizer.foresee.parameters(), lr=2 * settings.learning_rate)
    for step in range(settings.foresee_steps):
        for group in optimizer.param_groups:
            factor = warmup_cosine(step, settings.foresee_steps, settings.warmup)
            group["lr"] = 2 * settings.learning_rate * factor
        image_BCHW = _batch(images_NCHW, settings.batch, ranks, generator)
        with fast_autocast(ranks.device):
            error = tokenizer.foresight_error(image_BCHW)
        optimizer.zero_grad(set_to_none=True)
        (error * len(image_BCHW) / settings.batch).backward()
        ranks.sum_([p.grad for p in tokenizer.foresee.parameters() if p.grad is not None])
        optimizer.step()


def _batch(images_NCHW: Tensor, count: int, ranks: Ranks, generator: torch.Generator) -> Tensor:
    """This rank's share of `count` random images in [0, 1], half of them mirrored."""
    chosen_B = torch.randint(len(images_NCHW), (count,), generator=generator)
    mirrored_B = torch.rand(count, generator=generator) < 0.5
    image_BCHW = images_NCHW[ranks.share(chosen_B)].to(ranks.device).float() / 255
    turned_B = ranks.share(mirrored_B).to(ranks.device)
    return torch.where(turned_B[:, None, None, None], image_BCHW.flip(-1), image_BCHW)


def _pixel_error(
    tokenizer: SpectralTokenizer, a: list[Tensor], b: list[Tensor], *, first: int = 0
) -> Tensor:
    """Mean squared error a pixel and channel between two sets of patches (Parseval), those of the
    scales from `first` on.
    """
    squares = torch.stack([(x - y).square().sum() for x, y in zip(a, b, strict=True)])
    total = (squares * tokenizer.spread_S[first:].square()).sum()
    return total / (len(a[0]) * 3 * tokenizer.config.coarse_size**2)
