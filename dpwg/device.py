"""Where to compute, and in which precision."""

from __future__ import annotations

import os

import torch

PRECISIONS = ("auto", "bfloat16", "float32")
"""What a training computes in; "auto" is what `pick_precision` says."""


def pick_device(name: str | None = None, *, mps: bool = False) -> str:
    """What is asked for, cpu, cuda or mps, if it is here; left open, a GPU where there is one.

    Apple's, `mps`, which has no float64, is taken unasked only where that is said to be enough. Of
    several processes that `torchrun` started each gets its own GPU. Raises ValueError for a GPU
    that is missing.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = name or next((n for n, here in there.items() if here and (mps or n != "mps")), "cpu")
    if not there.get(name, True):
        raise ValueError(f"Expected device={name!r} to be here, found none; take 'cpu'.")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16.

    Without them PyTorch computes such products all the same, several times slower than in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return any(there for name, there in features.items() if "bf16" in name)


def pick_precision(device: torch.device, name: str = "auto") -> str:
    """What is asked for; by "auto" bfloat16 where the device multiplies it, float32 elsewhere.

    Raises ValueError for a name that is not in `PRECISIONS`.
    """
    if name not in PRECISIONS:
        raise ValueError(f"Expected precision={name!r:.80} in {PRECISIONS}.")
    if name == "auto":
        return "bfloat16" if multiplies_bfloat16(device) else "float32"
    return name


def fast_autocast(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the device multiplies it; elsewhere nothing changes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device))
