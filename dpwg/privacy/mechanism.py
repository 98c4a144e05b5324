"""The two random choices that the guarantee rests on: who is in a step, and the noise.

Both come from one generator a run: Philox with a 128-bit key from the operating system's entropy,
unless a test passes its own. Philox is a counter-based generator of high quality, not a
cryptographic one.
"""

from __future__ import annotations

import secrets

import numpy as np
import torch
from torch import Tensor


def system_generator() -> np.random.Generator:
    """A Philox generator with a key from the operating system's entropy."""
    return np.random.Generator(np.random.Philox(key=secrets.randbits(128)))


def poisson_sample(records: int, rate: float, generator: np.random.Generator) -> Tensor:
    """The records of one step: each of 0..records-1 with probability `rate`, independently.

    Returns int64 indices in order; there may be none.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"Expected rate={rate} in (0, 1].")
    return torch.from_numpy(np.flatnonzero(generator.random(records) < rate))


def add_gaussian_noise(
    sums: dict[str, Tensor], *, standard_deviation: float, generator: np.random.Generator
) -> None:
    """Add independent N(0, standard_deviation**2) to every coordinate, in place."""
    if not 0 <= standard_deviation < float("inf"):
        raise ValueError(f"Expected standard_deviation={standard_deviation} in [0, infinity).")
    if standard_deviation == 0:
        return
    for total in sums.values():
        noise = standard_deviation * generator.standard_normal(tuple(total.shape))
        total.add_(torch.from_numpy(noise.astype(np.float32)).to(total.device))
