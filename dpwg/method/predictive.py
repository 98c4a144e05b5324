"""A spectral tokenizer whose codes hold only what the coarser image cannot predict.

Haar details are not independent of the coarser image: an edge goes on. Small convolutions foresee
each scale's details from the image that the coarser codes decode to, and only the difference is
quantized, as predictive coders do. A third to nearly half of the details' energy is gone by then
(docs/LOG.md), so the same number of codes says more. What codes leave uneven, further convolutions
smooth out. All of it is causal by scale: nothing finer than a scale enters its codes or its image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpwg.method.layers import Residual
from dpwg.method.tokenizer import Reconstruction, SpectralTokenizer, new_codebooks
from dpwg.method.wavelet import haar_pyramid, inverse_haar_step


class Correction(nn.Module):
    """Convolutions (B, inputs, h, w) -> (B, outputs, h, w), zero before training."""

    def __init__(self, inputs: int, outputs: int, channels: int, residuals: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, channels, 3, padding=1)
        self.residuals = nn.ModuleList(Residual(channels) for _ in range(residuals))
        self.conv_out = nn.Conv2d(channels, outputs, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_BChw: Tensor) -> Tensor:
        hidden = self.conv_in(x_BChw)
        for residual in self.residuals:
            hidden = residual(hidden)
        return self.conv_out(F.gelu(hidden, approximate="tanh")).float()


class PredictiveTokenizer(SpectralTokenizer):
    """Coarse images <-> codes, as `SpectralTokenizer`; `spread_S` is that of what is quantized.

    In units of `spread_S`, with the image so far a (centred at 0) and the details d of the next
    scale: p = foresee(a), q the codebook's vectors nearest to d - p, and the decoded details are
    p + q + smooth(q, p, a). Every scale learns from its own error alone: what foresees, from what
    it misses; what smooths, from what is left in the end.
    """

    def _build(self) -> None:
        config = self.config
        shape = (config.channels, config.residuals)
        self.foresee = nn.ModuleList(Correction(3, 9, *shape) for _ in range(config.levels))
        self.codebooks = new_codebooks(config)
        self.smooth = nn.ModuleList(
            Correction(21 if scale else 3, 9 if scale else 3, *shape)
            for scale in range(config.scales)
        )

    @torch.no_grad()
    def initialise_from(self, image_BCHW: Tensor, *, seed: int = 0, rounds: int = 12) -> None:
        """Take units and k-means codebooks from public images, with the convolutions as they are.

        A scale's codebook is made of what is left once the coarser scales went through theirs.
        """
        generator = torch.Generator().manual_seed(seed)
        self.spread_S.fill_(1)
        for scale, book in enumerate(self.books()):
            parts = [
                self._pass(self.patches(part_BCHW), scale + 1).latents[scale]
                for part_BCHW in image_BCHW.split(500)
            ]
            left_ND = torch.cat(parts).flatten(0, 2)
            self.spread_S[scale] = left_ND.std().clamp(min=1e-6)
            chosen = torch.randperm(len(left_ND), generator=generator)[:120_000]
            book.fit(left_ND[chosen] / self.spread_S[scale], rounds=rounds, generator=generator)

    def foresight_error(self, image_BCHW: Tensor, noise: float = 0.01) -> Tensor:
        """Mean squared error a pixel of the details that are foreseen from the true coarser images,
        disturbed by about as much as codes will.
        """
        bands = haar_pyramid(image_BCHW - 0.5, self.config.levels)
        image_BChw = bands[0] / 2**self.config.levels
        error = image_BCHW.new_zeros(())
        for scale in range(1, self.config.scales):
            seen_BChw = image_BChw + scale * noise * torch.randn_like(image_BChw)
            foreseen = self.foresee[scale - 1](seen_BChw)
            error = error + (foreseen - bands[scale].flatten(1, 2)).square().sum()
            size = 2.0 ** (self.config.levels - scale)
            image_BChw = inverse_haar_step(image_BChw * 2 * size, bands[scale]) / size
        return error / image_BCHW.numel()

    def forward(self, patches: list[Tensor]) -> Reconstruction:
        """One differentiable pass, for training."""
        return self._pass(patches, self.config.scales)

    def _pass(self, patches: Sequence[Tensor], scales: int) -> Reconstruction:
        """The first `scales` scales, each from the decoded image of those before it."""
        done = Reconstruction(decoded=[], latents=[], quantized=[], indices=[], foreseen=[])
        image_BChw: Tensor | None = None
        for scale in range(scales):
            foreseen, latents = self._foreseen(image_BChw, scale), patches[scale]
            if foreseen is not None:
                done.foreseen.append(self.cut(foreseen))
                foreseen = foreseen.detach()
                latents = latents - self.cut(foreseen)
            quantized, indices = self.codebooks[scale](latents)
            details = self._decoded(quantized, foreseen, image_BChw, scale)
            image_BChw = self._finer(image_BChw, details, scale).detach()
            done.decoded.append(self.cut(details))
            done.latents.append(latents)
            done.quantized.append(quantized)
            done.indices.append(indices)
        return done

    def _foreseen(self, image_BChw: Tensor | None, scale: int) -> Tensor | None:
        """The details that the image so far makes likely, (B, 9, h, w); none of the coarsest."""
        if image_BChw is None:
            return None
        out: Tensor = self.foresee[scale - 1](image_BChw) / self.spread_S[scale]
        return out

    def _decoded(
        self, quantized: Tensor, foreseen: Tensor | None, image_BChw: Tensor | None, scale: int
    ) -> Tensor:
        """The band or bands of a scale from the codebook's vectors."""
        given = self.paste(quantized, scale)
        if image_BChw is None or foreseen is None:
            return given + self.smooth[scale](given)
        seen = torch.cat((given, foreseen, image_BChw), dim=1)
        return foreseen + given + self.smooth[scale](seen)

    def _finer(self, image_BChw: Tensor | None, details: Tensor, scale: int) -> Tensor:
        """The image with one more scale, in the image's range, centred at 0."""
        size = 2.0 ** (self.config.levels - scale)
        bands = details * self.spread_S[scale]
        if image_BChw is None:
            return bands / size
        return inverse_haar_step(image_BChw * 2 * size, bands.unflatten(1, (3, 3))) / size

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> list[Tensor]:
        """Images -> code indices of every scale."""
        return self.forward(self.patches(image_BCHW)).indices

    @torch.no_grad()
    def decode(self, codes: Sequence[Tensor]) -> Tensor:
        """Code indices of the first k scales -> the image of that size, in [0, 1]."""
        image_BChw: Tensor | None = None
        for scale, index in enumerate(codes):
            quantized = self.books()[scale].vectors_KD[index]
            foreseen = self._foreseen(image_BChw, scale)
            details = self._decoded(quantized, foreseen, image_BChw, scale)
            image_BChw = self._finer(image_BChw, details, scale)
        if image_BChw is None:
            raise ValueError("Expected the codes of one scale or more, found none.")
        return (image_BChw + 0.5).clamp(0, 1)
