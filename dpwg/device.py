"""Where to compute."""

from __future__ import annotations

import os

import torch


def pick_device(name: str | None = None) -> str:
    """What is asked for, "cpu" or "cuda", if it is here; left open, a GPU where there is one.

    Of several processes that `torchrun` started each gets its own GPU. Raises ValueError for a GPU
    that is missing.
    """
    there = torch.cuda.is_available()
    name = name or ("cuda" if there else "cpu")
    if name == "cuda" and not there:
        raise ValueError("Expected device='cuda' to be here, found none; take 'cpu'.")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name
