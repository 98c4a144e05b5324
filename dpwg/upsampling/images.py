"""What every upsampler takes."""

from __future__ import annotations

import torch
from torch import Tensor


def check_images(image_BCHW: Tensor) -> None:
    """Raise ValueError for anything but (B, 3, H, W) float32 in [0, 1]."""
    shape = tuple(image_BCHW.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise ValueError(
            f"Expected image_BCHW of shape (B, 3, H, W), found {shape}; add the batch."
        )
    if image_BCHW.dtype != torch.float32:
        raise ValueError(f"Expected float32 in [0, 1], found {image_BCHW.dtype}; convert it first.")
    low, high = (bound.item() for bound in image_BCHW.aminmax())
    if not (low >= 0 and high <= 1):  # false for NaN too
        raise ValueError(f"Expected values in [0, 1], found [{low:.4g}, {high:.4g}]; clamp them.")
