"""Training on several processes at once, as `torchrun` starts them, or on one.

Every process computes its share of a step and all of them then hold the same sums, take the same
step and stay equal. Alone, sums and broadcasts change nothing. Source: torch.distributed, gloo on
CPUs and nccl on GPUs.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Self

import torch
from torch import Tensor, distributed

from dpwg.device import pick_device, pick_precision

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones; False where it cannot.

    glibc gives every large block back to the kernel, which clears its pages anew at the next step's
    same allocation: up to a tenth of a training step on a CPU. For processes that train: what was
    held at the peak stays held. Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another libc
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26))
    return all(mallopt(name, value) == 1 for name, value in settings)


class Ranks:
    """This process among `world` ones: `rank` counts from 0, and rank 0 `leads`."""

    def __init__(self, rank: int = 0, world: int = 1, device: str | torch.device = "cpu") -> None:
        self.rank, self.world, self.device = rank, world, torch.device(device)

    @classmethod
    def from_environment(cls, device: str | None = None) -> Self:
        """Join the processes that `torchrun` started; alone without it.

        `device` is "cpu" or "cuda": a GPU where there is one, if it is left open.
        """
        device = pick_device(device)
        if "WORLD_SIZE" not in os.environ:
            return cls(device=device)
        if device != "cpu":
            torch.cuda.set_device(device)
        if not distributed.is_initialized():
            backend = "nccl" if device != "cpu" else "gloo"
            # Each machine encodes a set for itself, and some are slower.
            distributed.init_process_group(backend, timeout=timedelta(hours=6))
        return cls(distributed.get_rank(), distributed.get_world_size(), device)

    @property
    def leads(self) -> bool:
        """Whether this is the process that adds noise, writes files and reports."""
        return self.rank == 0

    def share(self, x_N: Tensor) -> Tensor:
        """This process's part of dimension 0: every `world`-th entry."""
        return x_N[self.rank :: self.world]

    @torch.no_grad()
    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in one exchange a dtype."""
        if self.world > 1:
            self._together(list(tensors), distributed.all_reduce)

    @torch.no_grad()
    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by rank 0's."""
        if self.world > 1:
            self._together(list(tensors), lambda flat: distributed.broadcast(flat, src=0))

    def agree_on_precision(self, name: str) -> str:
        """What one of `dpwg.device.PRECISIONS` means for all processes: the finest of any."""
        finest = torch.zeros((), device=self.device)
        finest += pick_precision(self.device, name) == "float32"
        self.sum_([finest])
        return "float32" if finest else "bfloat16"

    def agree(self, value: float) -> float:
        """The leading process's number, for all."""
        held = torch.tensor(value, dtype=torch.float64, device=self.device)
        self.broadcast_([held])
        return float(held)

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.world > 1:
            distributed.barrier()

    @staticmethod
    def _together(tensors: list[Tensor], exchange: Callable[[Tensor], object]) -> None:
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.flatten() for tensor in same])
            exchange(flat)
            for tensor, part in zip(same, flat.split([t.numel() for t in same]), strict=True):
                tensor.copy_(part.view_as(tensor))
