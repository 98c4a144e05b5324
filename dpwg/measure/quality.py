"""Measurements on held-out records, for the tables in the documentation.

Held-out records are not training records, so nothing here touches the privacy budget; it must not
be used to choose among private checkpoints all the same.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dpwg.data.records import Records
from dpwg.device import pick_precision
from dpwg.method.generator import Generator
from dpwg.method.reranker import Reranker
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.method.wavelet import coarse_image, haar_pyramid
from dpwg.training.encodings import coarse_batches
from dpwg.training.examples import Examples
from dpwg.training.reranker import numbered, without_equal
from dpwg.upsampling.upsamplers import Upsampler


@dataclass(frozen=True, kw_only=True)
class TokenizerQuality:
    """PSNR in dB of each partial decode against the matching coarse image, and codebook use."""

    images: int
    tokens: int
    psnr: dict[str, float]
    codes_used: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "codes_used": list(self.codes_used)}


def tokenizer_quality(tokenizer: SpectralTokenizer, records: Records) -> TokenizerQuality:
    """Measure a tokenizer on all images of a set: the mean squared error over the set, as PSNR."""
    config = tokenizer.config
    errors = [0.0] * config.scales
    used = [torch.zeros(size, dtype=torch.bool) for size in config.codebook_sizes]
    for batch in coarse_batches(records, config.coarse_size):
        image_BCHW = batch.float() / 255
        codes = tokenizer.encode(image_BCHW)
        for scale in range(config.scales):
            target = F.avg_pool2d(image_BCHW, 1 << (config.levels - scale))
            decoded = tokenizer.decode(codes[: scale + 1])
            errors[scale] += float((decoded - target).square().mean((1, 2, 3)).sum())
            used[scale][codes[scale].flatten()] = True
    sizes = [config.image_size(scale) for scale in range(config.scales)]
    return TokenizerQuality(
        images=len(records),
        tokens=config.tokens,
        psnr={
            f"{size}x{size}": -10 * math.log10(error / len(records))
            for size, error in zip(sizes, errors, strict=True)
        },
        codes_used=tuple(int(seen.sum()) for seen in used),
    )


@dataclass(frozen=True, kw_only=True)
class UpsamplerQuality:
    """How near an upsampler comes to the images, from their decoded codes.

    `psnr` is in dB; `detail_energy` is the energy of the finer Haar bands over that of the images'
    own, 0 for repeated pixels and 1 for as much detail as there should be.
    """

    name: str
    images: int
    psnr: float
    detail_energy: float

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def upsampler_quality(
    upsample: Upsampler, tokenizer: SpectralTokenizer, records: Records, count: int
) -> UpsamplerQuality:
    """Measure an upsampler on the first `count` images of a set, as the tokenizer decodes them."""
    levels = upsample.scale.bit_length() - 1
    size = tokenizer.config.coarse_size << levels
    count = min(count, len(records))
    error, energy, wanted = 0.0, 0.0, 0.0
    for start in range(0, count, 50):
        images = [records[i].image(size) for i in range(start, min(start + 50, count))]
        image_BCHW = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        coarse_BChw = tokenizer.decode(tokenizer.encode(coarse_image(image_BCHW, levels)))
        large_BCHW = upsample(coarse_BChw)
        error += float((large_BCHW - image_BCHW).square().mean((1, 2, 3)).sum())
        energy += _detail_energy(large_BCHW, levels)
        wanted += _detail_energy(image_BCHW, levels)
    return UpsamplerQuality(
        name=upsample.name,
        images=count,
        psnr=-10 * math.log10(error / count),
        detail_energy=energy / wanted,
    )


@dataclass(frozen=True, kw_only=True)
class RerankerQuality:
    """How often a coarsest band finds its own caption first among those of `among` records in a
    row, and a caption its band.
    """

    records: int
    among: int
    captions_found: float
    images_found: float

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


@torch.no_grad()
def reranker_quality(
    reranker: Reranker,
    image_NChw: Tensor,
    examples: Examples,
    captions: Sequence[str],
    among: int = 100,
) -> RerankerQuality:
    """Measure a reranker on the coarsest images of a set's records and their first captions.

    `captions` are those in words: one that equals another is no wrong answer there.
    """
    count, found, same_N = len(examples) // among * among, torch.zeros(2), numbered(captions)
    if not count:
        raise ValueError(f"Expected {among} records or more, found {len(examples)}.")
    for index_B in torch.arange(count).split(among):
        batch = examples.batch(index_B)
        scores_BB = reranker.scores(image_NChw[index_B], batch.states_BLD, batch.mask_BL)
        own_B = torch.arange(among)
        scores_BB = without_equal(scores_BB, same_N[index_B])
        found += torch.stack([(scores_BB.argmax(axis) == own_B).sum() for axis in (1, 0)])
    own_caption, own_image = (found / count).tolist()
    return RerankerQuality(
        records=count, among=among, captions_found=own_caption, images_found=own_image
    )


def _detail_energy(image_BCHW: Tensor, levels: int) -> float:
    return sum(float(details.square().sum()) for details in haar_pyramid(image_BCHW, levels)[1:])


def held_out_loss(model: Generator, examples: Examples) -> float:
    """Mean nats per code of a model on all examples, first captions, in the fastest precision."""
    return float(losses_of(model, examples).double().mean())


@torch.no_grad()
def losses_of(model: Generator, examples: Examples, *, batch: int = 64) -> Tensor:
    """Nats per code of every example, first captions, in the fastest precision; float32 (N,)."""
    precision = pick_precision(next(model.parameters()).device)
    worker = copy.deepcopy(model).to(getattr(torch, precision))
    losses = []
    for start in range(0, len(examples), batch):
        chosen_B = torch.arange(start, min(start + batch, len(examples)))
        part = examples.batch(chosen_B)
        losses.append(worker.losses(part))
    return torch.cat(losses)
