"""DP-LDM: diffusion of latents, of which DP-SGD trains the attention.

After Liu et al. 2024 (TMLR, arXiv 2305.15759), small: an autoencoder of the whole image, trained on
public images; noise prediction in its latents by a UNet, trained on public images; then, privately,
the UNet's transformer blocks and what projects the caption, and nothing else of it. Networks are
those of diffusers. Pictures are drawn by DDIM (arXiv 2010.02502) with guidance.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpwg.config import AutoencoderConfig, DiffusionConfig
from dpwg.method.captions import EncodedText
from dpwg.method.codebook import Codebook
from dpwg.method.generator import Batch, Generator
from dpwg.method.sampling import Sampling

DRAWN = 30
"""Steps of DDIM."""


class LatentAutoencoder(nn.Module):
    """Full images in [0, 1] <-> one part of "codes": latents (B, channels, h, w), about normal."""

    scale: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        from diffusers import AutoencoderKL

        make: Any = AutoencoderKL
        super().__init__()
        self.config = config
        count = len(config.widths)
        self.network: Any = make(
            down_block_types=("DownEncoderBlock2D",) * count,
            up_block_types=("UpDecoderBlock2D",) * count,
            block_out_channels=config.widths,
            latent_channels=config.latent_channels,
            norm_num_groups=config.groups,
            mid_block_add_attention=False,
        )
        # Nearly no noise to begin with: means would first have to outgrow it.
        nn.init.constant_(self.network.quant_conv.bias[config.latent_channels :], -8.0)
        self.register_buffer("scale", torch.ones(()))

    def books(self) -> list[Codebook]:
        """There are none."""
        return []

    def posterior(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latents, not scaled."""
        found = self.network.encode(2 * image_BCHW - 1).latent_dist
        return found.mean, found.logvar

    def image(self, latent_BChw: Tensor) -> Tensor:
        """Latents, not scaled, -> images; values may leave [0, 1] a little."""
        out: Tensor = self.network.decode(latent_BChw).sample / 2 + 0.5
        return out

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> list[Tensor]:
        """Images -> latents, float32."""
        return [(self.posterior(image_BCHW)[0] / self.scale).float()]

    @torch.no_grad()
    def decode(self, codes: Sequence[Tensor]) -> Tensor:
        """Latents -> images in [0, 1], float32, each computed alone: the same in any batch."""
        latent_BChw = (codes[0] * self.scale).to(self.network.dtype)
        return torch.cat([self.image(one) for one in latent_BChw.split(1)]).float().clamp(0, 1)


class LatentDiffusion(Generator):
    """Caption states, noised latents and how much noise there is -> the noise."""

    unit = "squared error of the noise"

    def __init__(self, config: DiffusionConfig) -> None:
        from diffusers import UNet2DConditionModel

        make: Any = UNet2DConditionModel
        super().__init__()
        self.config = config
        count = len(config.widths)
        self.caption = nn.Linear(config.text_width, config.text_width)
        self.network: Any = make(
            sample_size=config.size,
            in_channels=config.channels,
            out_channels=config.channels,
            down_block_types=("CrossAttnDownBlock2D",) * count,
            up_block_types=("CrossAttnUpBlock2D",) * count,
            block_out_channels=config.widths,
            layers_per_block=config.layers,
            cross_attention_dim=config.text_width,
            attention_head_dim=tuple(width // config.head_width for width in config.widths),
            norm_num_groups=config.groups,
            use_linear_projection=True,
        )

    @property
    def kept(self) -> Tensor:
        """The share of the signal's energy that is left at each level, exact in any precision."""
        return _kept(self.config.steps).to(self.caption.weight.device)

    def forward(
        self, latent_BChw: Tensor, level_B: Tensor, states_BLD: Tensor, mask_BL: Tensor
    ) -> Tensor:
        """The noise in latents at their levels, 0 to steps - 1."""
        dtype = self.caption.weight.dtype
        states_BLD = F.layer_norm(states_BLD.to(dtype), states_BLD.shape[-1:])
        out: Tensor = self.network(
            latent_BChw.to(dtype),
            level_B,
            encoder_hidden_states=self.caption(states_BLD),
            encoder_attention_mask=mask_BL,
        ).sample
        return out

    def losses(self, batch: Batch) -> Tensor:
        """Mean squared error of each record's noise; level and noise come of its own number."""
        (latent_BChw,) = batch.codes
        if not latent_BChw.is_floating_point():
            raise ValueError(f"Expected latents of images, found {latent_BChw.dtype}.")
        level_B, noise_BChw = self._drawn(batch)
        level_B, noise_BChw = level_B.to(latent_BChw.device), noise_BChw.to(latent_BChw.device)
        kept_B111 = self.kept[level_B].float()[:, None, None, None]
        noised_BChw = kept_B111.sqrt() * latent_BChw + (1 - kept_B111).sqrt() * noise_BChw
        found_BChw = self(noised_BChw, level_B, batch.states_BLD, batch.mask_BL)
        return (found_BChw.float() - noise_BChw).square().mean((1, 2, 3))

    def _drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Level (B,) and noise (B, channels, h, w) of each record, whatever stands beside it."""
        levels, noises = [], []
        for number in batch.draw_B.double().tolist():
            generator = torch.Generator().manual_seed(_seed(number))
            levels.append(torch.randint(self.config.steps, (), generator=generator))
            noises.append(torch.randn(batch.codes[0].shape[1:], generator=generator))
        return torch.stack(levels), torch.stack(noises)

    def make_trainable(self, lora_rank: int) -> None:
        """The transformer blocks and the caption's projection, as they are; without adapters."""
        if lora_rank:
            raise ValueError("Expected lora_rank=0: DP-LDM trains its attention as it is.")
        self.requires_grad_(False)
        for name, module in self.named_modules():
            if name == "caption" or name.endswith("transformer_blocks"):
                module.requires_grad_(True)

    def random_codes(self, records: int, generator: torch.Generator) -> list[Tensor]:
        """Normal latents."""
        shape = (records, self.config.channels, self.config.size, self.config.size)
        return [torch.randn(shape, generator=generator)]


@functools.cache
def _kept(steps: int) -> Tensor:
    """By Stable Diffusion's schedule, float64 (steps,)."""
    root_T = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64)
    return (1 - root_T.square()).cumprod(0)


def _seed(number: float) -> int:
    """32 bits, which are all that PyTorch's generator takes, of a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(struct.pack("<d", number)).digest()[:4])


@torch.no_grad()
def denoise(
    model: LatentDiffusion,
    text: EncodedText,
    unconditional: EncodedText,
    seeds: Sequence[int],
    settings: Sampling,
    **_: Any,
) -> Iterator[list[Tensor]]:
    """Latents of one image a caption and seed, as each step of DDIM foresees them in the end.

    Of the settings `guidance` alone is used.
    """
    config, weight = model.config, model.caption.weight
    noises = [
        torch.randn(
            (config.channels, config.size, config.size), generator=torch.Generator().manual_seed(s)
        )
        for s in seeds
    ]
    x_BChw = torch.stack(noises).to(weight)
    states_BLD = torch.cat((text.states_BLD, unconditional.states_BLD.expand_as(text.states_BLD)))
    mask_BL = torch.cat((text.mask_BL, unconditional.mask_BL.expand_as(text.mask_BL)))
    states_BLD, mask_BL = states_BLD.to(weight.device), mask_BL.to(weight.device)
    levels = torch.linspace(config.steps - 1, 0, DRAWN).round().long().tolist()
    for level, after in zip(levels, [*levels[1:], None], strict=True):
        level_B = torch.full((2 * len(x_BChw),), level, device=weight.device)
        both = model(torch.cat((x_BChw, x_BChw)), level_B, states_BLD, mask_BL)
        conditional_BChw, free_BChw = both.chunk(2)
        noise_BChw = free_BChw + settings.guidance * (conditional_BChw - free_BChw)
        left = model.kept[level].to(weight.dtype)
        clean_BChw = (x_BChw - (1 - left).sqrt() * noise_BChw) / left.sqrt()
        yield [clean_BChw]
        if after is not None:
            left = model.kept[after].to(weight.dtype)
            x_BChw = left.sqrt() * clean_BChw + (1 - left).sqrt() * noise_BChw
