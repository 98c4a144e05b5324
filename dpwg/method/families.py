"""The families of generators by their names: DP-Wavelet, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dpwg.config import AutoencoderConfig, Config, DiffusionConfig, ModelConfig
from dpwg.method.generator import Generator
from dpwg.method.predictive import PredictiveTokenizer
from dpwg.method.rivals.latents import DRAWN, LatentAutoencoder, LatentDiffusion, denoise
from dpwg.method.rivals.raster import RasterTokenizer, rows_of, sample_rows
from dpwg.method.sampling import sample
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.method.transformer import WaveletGPT


@dataclass(frozen=True, kw_only=True)
class Family:
    """A generator: its configuration, whose `blocks` are fewer than its tensors, its model, how
    codes are drawn of it, and in how many stages.
    """

    title: str
    config: type[Config]
    model: Callable[[Any], Generator]
    draw: Callable[..., Iterator[list[Tensor]]]
    stages: Callable[[Any], int]


FAMILIES = {
    "dp-wavelet": Family(
        title="DP-Wavelet",
        config=ModelConfig,
        model=WaveletGPT,
        draw=sample,
        stages=lambda config: config.scales,
    ),
    "dp-llamagen": Family(
        title="DP-LlamaGen",
        config=ModelConfig,
        model=WaveletGPT,  # of one scale
        draw=sample_rows,
        stages=lambda config: len(rows_of(config.positions)),
    ),
    "dp-ldm": Family(
        title="DP-LDM",
        config=DiffusionConfig,
        model=LatentDiffusion,
        draw=denoise,
        stages=lambda config: DRAWN,
    ),
}
DEFAULT_FAMILY = next(iter(FAMILIES))
"""Of a release whose configuration names none."""


def new_tokenizer(config: Any) -> Any:
    """An untrained tokenizer, or autoencoder, of the kind that a configuration asks for."""
    if isinstance(config, AutoencoderConfig):
        return LatentAutoencoder(config)
    if not config.levels:
        return RasterTokenizer(config)
    return (PredictiveTokenizer if config.channels else SpectralTokenizer)(config)
