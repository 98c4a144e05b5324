"""The finer Haar bands of an image, guessed from its coarse bands: this project's own upsampler.

Coarse to fine goes on where the private stage stops. A transformer over patches of the coarse image
sees all of it, a few convolutions join the patches, and what leaves at every coarse pixel are Haar
coefficients: a correction of the coarse band, which undoes what the tokenizer's codes cannot say,
and the details of every finer level. Trained on the public mix only.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpwg.config import SuperResolutionConfig
from dpwg.method.layers import Block, Residual
from dpwg.method.wavelet import haar_pyramid, inverse_haar_pyramid
from dpwg.modules import (
    CONFIG,
    SHIPPED,
    checkpoint_root,
    load_module,
    read_config,
    save_module,
)

UPSAMPLER = "upsampler"
"""The folder of the super-resolution model among the checkpoints, which share it."""
SUPERRESOLUTIONS = {"wavelet": UPSAMPLER, "photo": f"celeba/{UPSAMPLER}"}
"""Where those of the upsamplers "wavelet" and "photo" are."""


class SuperResolution(nn.Module):
    """Coarse RGB images (B, 3, S, S) in [0, 1] -> (B, 3, S << levels, S << levels).

    S is config.coarse_size. At the start every detail is zero, so that pixels are just repeated.
    """

    def __init__(self, config: SuperResolutionConfig) -> None:
        super().__init__()
        self.config = config
        width, channels, patch = config.width, config.channels, config.patch
        # 1. patches of the coarse image, all of which see each other
        self.embed = nn.Linear(3 * patch**2, width)
        self.places = nn.Parameter(torch.randn((config.coarse_size // patch) ** 2, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width)
        self.unfold = nn.Linear(width, channels * patch**2)
        # 2. coarse pixels, which see their neighbours
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.residuals = nn.ModuleList(Residual(channels) for _ in range(config.residuals))
        # 3. the Haar coefficients of every coarse pixel
        self.coefficients = nn.Conv2d(channels, 3 << (2 * config.levels), 3, padding=1)
        for parameter in self.coefficients.parameters():
            nn.init.zeros_(parameter)

    def forward(self, image_BChw: Tensor) -> Tensor:
        """The image; values may leave [0, 1] a little."""
        centred_BChw = image_BChw.to(self.stem.weight.dtype) - 0.5
        x_BChw = self.stem(centred_BChw) + self._seen_whole(centred_BChw)
        for residual in self.residuals:
            x_BChw = residual(x_BChw)
        coefficients_BKhw = self.coefficients(F.gelu(x_BChw, approximate="tanh")).float()
        return self._synthesize(image_BChw, coefficients_BKhw)

    def _seen_whole(self, image_BChw: Tensor) -> Tensor:
        patch, grid = self.config.patch, self.config.coarse_size // self.config.patch
        tokens_BTD = F.pixel_unshuffle(image_BChw, patch).flatten(2).transpose(1, 2)
        x_BTC = self.embed(tokens_BTD) + self.places
        for block in self.blocks:
            x_BTC = block(x_BTC, x_BTC.new_zeros(()))
        out_BKT = self.unfold(self.norm(x_BTC)).transpose(1, 2)
        return F.pixel_shuffle(out_BKT.unflatten(2, (grid, grid)), patch)

    def _synthesize(self, image_BChw: Tensor, coefficients_BKhw: Tensor) -> Tensor:
        """The inverse Haar transform, a coarse pixel's coefficients being a pyramid of its own."""
        levels = self.config.levels
        sizes = [3, *(9 << (2 * level) for level in range(levels))]
        approximation, *details = coefficients_BKhw.split(sizes, dim=1)
        bands = [(image_BChw + approximation) * 2**levels]
        for level, detail in enumerate(details):
            placed = F.pixel_shuffle(detail, 1 << level)  # B 9 (h << level) (w << level)
            bands.append(placed.unflatten(1, (3, 3)))
        return inverse_haar_pyramid(bands)


def band_error(image_BCHW: Tensor, target_BCHW: Tensor, levels: int) -> Tensor:
    """Mean absolute error of the pixels and of all Haar details, which asks for crisp edges."""
    error = (image_BCHW - target_BCHW).abs().mean()
    for details in haar_pyramid(image_BCHW - target_BCHW, levels)[1:]:
        error = error + details.abs().mean() / levels
    return error


def save_superresolution(folder: Path, model: SuperResolution) -> None:
    """Write a super-resolution model as `save_module` does."""
    save_module(folder, model, model.config)


def load_superresolution(folder: Path | None = None) -> SuperResolution:
    """Read a model that `save_superresolution` wrote, in float32, ready to use.

    Without a folder it is that of `find_superresolution`.
    """
    folder = find_superresolution() if folder is None else folder
    if not (folder / CONFIG).exists():
        raise FileNotFoundError(
            f"Expected a super-resolution model in {folder}; make it with `python -m dpwg "
            "upsampler`, or choose the upsampler 'bicubic'."
        )
    config = SuperResolutionConfig.from_json(read_config(folder))
    return load_module(lambda: SuperResolution(config), folder, config.blocks + config.residuals)


def find_superresolution(name: str = "wavelet") -> Path:
    """The folder of the "wavelet" or the "photo" upsampler's model among the checkpoints in use, or
    else of the shipped one.
    """
    named = checkpoint_root() / SUPERRESOLUTIONS[name]
    return named if named.exists() else SHIPPED / SUPERRESOLUTIONS[name]
