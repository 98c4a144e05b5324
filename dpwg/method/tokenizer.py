"""The spectral tokenizer: coarse images as discrete codes, coarse to fine.

After the Spectral Image Tokenizer (arXiv 2412.09607). The Haar bands of a coarse image are cut so
that every scale has the same grid of positions, and a position holds a few codes. Encoder and
decoder are transformers under a scale-causal mask: a position sees its own scale and coarser ones,
so the first k scales decode alone to the coarser image. Both begin as the identity, with k-means
codebooks of the plain wavelet coefficients, and learn corrections. Trained on public images only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dpwg.config import TokenizerConfig
from dpwg.method.codebook import Codebook
from dpwg.method.layers import Block
from dpwg.method.wavelet import haar_pyramid, inverse_haar_pyramid


def scale_causal_bias(scales: int, positions: int) -> Tensor:
    """(T, T) scores to add: 0 where the query's scale is at least the key's, else -inf."""
    scale_T = torch.arange(scales).repeat_interleave(positions)
    return torch.zeros(len(scale_T), len(scale_T)).masked_fill(
        scale_T[:, None] < scale_T[None, :], -torch.inf
    )


def new_codebooks(config: TokenizerConfig) -> nn.ModuleList:
    """A codebook a scale, of random vectors."""
    return nn.ModuleList(
        Codebook(size, code_width)
        for size, code_width in zip(config.codebook_sizes, config.code_widths, strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A training pass: decoded coefficients, what was quantized, its quantization and indices.

    One tensor a scale, (B, positions, codes, code width) and (B, positions, codes) for indices, in
    the units of `SpectralTokenizer.patches`. `foreseen` are guesses of the last scales' patches
    from the coarser ones, where a tokenizer makes them.
    """

    decoded: list[Tensor]
    latents: list[Tensor]
    quantized: list[Tensor]
    indices: list[Tensor]
    foreseen: list[Tensor] = field(default_factory=list)


class SpectralTokenizer(nn.Module):
    """Coarse images <-> codes.

    Images are float RGB (B, 3, S, S) in [0, 1], S = config.coarse_size. Codes are one int64 tensor
    (B, positions, codes) a scale, coarse to fine.
    """

    bias: Tensor
    spread_S: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self._build()
        self.register_buffer("spread_S", torch.ones(config.scales))

    def _build(self) -> None:
        config = self.config
        width, scales, positions = config.width, config.scales, config.positions
        patches = [config.codes * code_width for code_width in config.code_widths]
        # 1. coefficients -> latents: the coefficients plus what the blocks add
        self.embed = nn.ModuleList(nn.Linear(patch, width) for patch in patches)
        self.encoder_places = nn.Parameter(torch.randn(scales * positions, width) * 0.02)
        self.encoder = nn.ModuleList(
            Block(width, config.heads) for _ in range(config.encoder_blocks)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.to_latents = nn.ModuleList(nn.Linear(width, patch) for patch in patches)
        # 2. latents -> codes
        self.codebooks = new_codebooks(config)
        # 3. codes -> coefficients: the codebook's vectors plus what the blocks add
        self.unembed = nn.ModuleList(nn.Linear(patch, width) for patch in patches)
        self.decoder_places = nn.Parameter(torch.randn(scales * positions, width) * 0.02)
        self.decoder = nn.ModuleList(
            Block(width, config.heads) for _ in range(config.decoder_blocks)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.to_coefficients = nn.ModuleList(nn.Linear(width, patch) for patch in patches)
        for linear in (*self.to_latents, *self.to_coefficients):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.register_buffer("bias", scale_causal_bias(scales, positions), persistent=False)

    @torch.no_grad()
    def initialise_from(self, image_BCHW: Tensor, *, seed: int = 0, rounds: int = 12) -> None:
        """Take units and k-means codebooks from public images."""
        generator = torch.Generator().manual_seed(seed)
        self.spread_S.fill_(1)
        patches = self.patches(image_BCHW)
        self.spread_S.copy_(torch.stack([patch.std() for patch in patches]))
        for codebook, patch, spread in zip(self.books(), patches, self.spread_S, strict=True):
            samples_ND = patch.flatten(0, 2) / spread
            chosen = torch.randperm(len(samples_ND), generator=generator)[:120_000]
            codebook.fit(samples_ND[chosen], rounds=rounds, generator=generator)

    def books(self) -> list[Codebook]:
        """The codebook of every scale."""
        return [book for book in self.codebooks if isinstance(book, Codebook)]

    def patches(self, image_BCHW: Tensor) -> list[Tensor]:
        """Wavelet coefficients of every scale by position and patch, in units of their spread.

        One tensor a scale, (B, positions, codes, code width).
        """
        bands = haar_pyramid(image_BCHW - 0.5, self.config.levels)
        return [self.cut(band) / spread for band, spread in zip(bands, self.spread_S, strict=True)]

    def cut(self, band: Tensor) -> Tensor:
        """A scale's band or bands (B, ..., h, w) by position and patch, the inverse of `paste`."""
        grid, split = self.config.grid, self.config.split
        cells = band.flatten(1, -3).unflatten(3, (grid, split, -1))
        cells = cells.unflatten(2, (grid, split, -1))  # B C gy sy y gx sx x
        cells = cells.permute(0, 2, 5, 3, 6, 1, 4, 7)
        return cells.flatten(5).flatten(3, 4).flatten(1, 2)

    def paste(self, patch: Tensor, scale: int) -> Tensor:
        """Patches of a scale as its band (B, 3, h, w), or its three bands (B, 9, h, w)."""
        grid, split = self.config.grid, self.config.split
        side = self.config.band_size(scale) // (grid * split)
        cells = patch.unflatten(3, (-1, side, side))
        cells = cells.unflatten(2, (split, split)).unflatten(1, (grid, grid))
        # B gy gx sy sx C y x -> B C (gy sy y) (gx sx x)
        return cells.permute(0, 5, 1, 3, 6, 2, 4, 7).flatten(5).flatten(2, 4)

    def image(self, patches: Sequence[Tensor]) -> Tensor:
        """The image of the first len(patches) scales, the inverse of `patches`, in its own size.

        A coarser size is scaled to the image's range, so that it can be looked at.
        """
        bands = []
        for scale, patch in enumerate(patches):
            band = self.paste(patch * self.spread_S[scale], scale)
            bands.append(band.unflatten(1, (3, 3)) if scale else band)
        return inverse_haar_pyramid(bands) / 2 ** (self.config.scales - len(patches)) + 0.5

    def latents(self, patches: list[Tensor]) -> list[Tensor]:
        """What is quantized: the coefficients and the encoder's correction, same shapes."""
        flat = [patch.flatten(2) for patch in patches]
        x_BTC = torch.cat([e(f) for e, f in zip(self.embed, flat, strict=True)], dim=1)
        x_BTC = x_BTC + self.encoder_places
        for block in self.encoder:
            x_BTC = block(x_BTC, self.bias)
        parts = self.encoder_norm(x_BTC).split(self.config.positions, dim=1)
        return [
            patch + to(part).float().view_as(patch)
            for patch, to, part in zip(patches, self.to_latents, parts, strict=True)
        ]

    def coefficients(self, quantized: Sequence[Tensor]) -> list[Tensor]:
        """Codebook vectors of the first k scales -> their wavelet coefficients, same shapes."""
        flat = [q.flatten(2) for q in quantized]
        x_BTC = torch.cat([u(f) for u, f in zip(self.unembed, flat, strict=False)], dim=1)
        T = x_BTC.shape[1]
        x_BTC = x_BTC + self.decoder_places[:T]
        for block in self.decoder:
            x_BTC = block(x_BTC, self.bias[:T, :T])
        parts = self.decoder_norm(x_BTC).split(self.config.positions, dim=1)
        return [
            q + to(part).float().view_as(q)
            for q, to, part in zip(quantized, self.to_coefficients, parts, strict=False)
        ]

    def forward(self, patches: list[Tensor]) -> Reconstruction:
        """One differentiable pass, for training."""
        latents = self.latents(patches)
        pairs = [codebook(z) for codebook, z in zip(self.codebooks, latents, strict=True)]
        quantized, indices = [q for q, _ in pairs], [i for _, i in pairs]
        return Reconstruction(
            decoded=self.coefficients(quantized),
            latents=latents,
            quantized=quantized,
            indices=indices,
        )

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> list[Tensor]:
        """Images -> code indices of every scale."""
        latents = self.latents(self.patches(image_BCHW))
        return [book.indices(z) for book, z in zip(self.books(), latents, strict=True)]

    @torch.no_grad()
    def decode(self, codes: Sequence[Tensor]) -> Tensor:
        """Code indices of the first k scales -> the image of that size, in [0, 1]."""
        quantized = [
            book.vectors_KD[index] for book, index in zip(self.books(), codes, strict=False)
        ]
        return self.image(self.coefficients(quantized)).clamp(0, 1)
