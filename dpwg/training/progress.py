"""What a training run reports while it runs, and how it paces its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report. `loss` is the mean over the examples since the last one.

    `epsilon` is what the ledger has spent so far, at the steps that are saved: accounting takes
    longer than a small step. In private training everything but it and the steps is itself private:
    the realised batch sizes in `examples` and `seconds` as much as `loss`, `gradient_norm` and
    `refused` (records left out for a gradient that is not finite). Show them to the owner of the
    data, never publish them.
    """

    step: int
    steps: int
    examples: int
    seconds: float
    loss: float
    gradient_norm: float | None = None
    refused: int = 0
    epsilon: float | None = None


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.05) -> float:
    """The factor of the learning rate at a step: linear up, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
