"""Orthonormal 2-D Haar pyramid in torch: batched, differentiable, PyWavelets' order and sign.

For a 2x2 block a b / c d the four bands are

    LL = (a + b + c + d) / 2        cH = (a + b - c - d) / 2
    cV = (a - b + c - d) / 2        cD = (a - b - c + d) / 2

so that the sum of squares is preserved (Parseval). Bands are ordered as `pywt.wavedec2` gives them:
the approximation first, then one detail tensor per level from coarse to fine.
"""

from __future__ import annotations

import torch
from torch import Tensor


def haar_step(image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """One analysis level: (B, C, H, W) -> approximation (B, C, h, w), details (B, 3, C, h, w).

    h = H/2, w = W/2, both H and W even. The details are cH, cV, cD along dimension 1.
    """
    height, width = image_BCHW.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(f"Expected even sides, found {height}x{width}; crop or pad the image.")
    a, b = image_BCHW[..., 0::2, 0::2], image_BCHW[..., 0::2, 1::2]
    c, d = image_BCHW[..., 1::2, 0::2], image_BCHW[..., 1::2, 1::2]
    top, bottom, top_step, bottom_step = a + b, c + d, a - b, c - d
    details = torch.stack((top - bottom, top_step + bottom_step, top_step - bottom_step), dim=1)
    return (top + bottom) / 2, details / 2


def inverse_haar_step(approximation_BChw: Tensor, details_B3Chw: Tensor) -> Tensor:
    """One synthesis level, the inverse of `haar_step`: -> (B, C, 2h, 2w)."""
    horizontal, vertical, diagonal = details_B3Chw.unbind(1)
    top, bottom = approximation_BChw + horizontal, approximation_BChw - horizontal
    top_step, bottom_step = vertical + diagonal, vertical - diagonal
    upper = torch.stack((top + top_step, top - top_step), dim=-1).flatten(-2)
    lower = torch.stack((bottom + bottom_step, bottom - bottom_step), dim=-1).flatten(-2)
    return torch.stack((upper, lower), dim=-2).flatten(-3, -2) / 2


def haar_pyramid(image_BCHW: Tensor, levels: int) -> list[Tensor]:
    """`levels` analysis steps: [LL, details of the coarsest level, ..., details of the finest].

    Equal to `pywt.wavedec2(x, "haar", level=levels)`, each level's tuple stacked in dimension 1.
    """
    bands: list[Tensor] = []
    approximation = image_BCHW
    for _ in range(levels):
        approximation, details = haar_step(approximation)
        bands.insert(0, details)
    return [approximation, *bands]


def inverse_haar_pyramid(bands: list[Tensor]) -> Tensor:
    """The image of a pyramid, equal to `pywt.waverec2`; fewer bands give the coarser image."""
    image = bands[0]
    for details in bands[1:]:
        image = inverse_haar_step(image, details)
    return image


def coarse_image(image_BCHW: Tensor, levels: int) -> Tensor:
    """The LL band after `levels` steps in the image's range: the mean of each block."""
    approximation = image_BCHW
    for _ in range(levels):
        approximation, _ = haar_step(approximation)
    return approximation / 2**levels
