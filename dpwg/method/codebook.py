"""Vector quantization: nearest codebook vector, k-means to begin with, dead codes revived."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Codebook(nn.Module):
    """`size` vectors of `width` numbers. Gradients reach the vectors and pass straight through."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.vectors_KD = nn.Parameter(torch.randn(size, width))

    def indices(self, x_D: Tensor) -> Tensor:
        """The nearest vector of each of (..., D), int64 (...); in float32 under autocast too.

        In bfloat16 the products of nearby vectors tie: three in ten of the coarsest scale's codes
        came out as another one.
        """
        vectors_KD = self.vectors_KD.detach()
        flat_ND = x_D.detach().reshape(-1, x_D.shape[-1]).to(vectors_KD.dtype)
        norms_K = vectors_KD.square().sum(1)
        with torch.autocast(x_D.device.type, enabled=False):
            nearest = [
                (norms_K - 2 * part @ vectors_KD.T).argmin(1) for part in flat_ND.split(16_384)
            ]
        return torch.cat(nearest).view(x_D.shape[:-1])

    def forward(self, x_D: Tensor) -> tuple[Tensor, Tensor]:
        """(quantized (..., D), indices): the gradient goes to the vectors and on to x unchanged."""
        indices = self.indices(x_D)
        return F.embedding(indices, self.vectors_KD) + (x_D - x_D.detach()), indices

    @torch.no_grad()
    def fit(self, x_ND: Tensor, *, rounds: int, generator: torch.Generator) -> None:
        """Lloyd's k-means from random samples; an empty cluster moves to a random sample."""
        size = len(self.vectors_KD)
        self.vectors_KD.copy_(x_ND[torch.randperm(len(x_ND), generator=generator)[:size]])
        for _ in range(rounds):
            nearest_N = self.indices(x_ND)
            count_K = torch.bincount(nearest_N, minlength=size)
            sums_KD = torch.zeros_like(self.vectors_KD).index_add_(0, nearest_N, x_ND)
            self.vectors_KD.copy_(sums_KD / count_K.clamp(min=1)[:, None])
            self.revive(count_K == 0, x_ND, generator)

    @torch.no_grad()
    def revive(self, dead_K: Tensor, x_ND: Tensor, generator: torch.Generator) -> None:
        """Move dead vectors to random samples."""
        if dead_K.any():
            chosen = torch.randint(len(x_ND), (int(dead_K.sum()),), generator=generator)
            self.vectors_KD[dead_K] = x_ND[chosen].to(self.vectors_KD.dtype)
