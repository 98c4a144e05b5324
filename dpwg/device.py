"""Where to compute."""

from __future__ import annotations

import torch


def pick_device(name: str | None = None) -> str:
    """What is asked for, "cpu" or "cuda", if it is here; left open, a GPU where there is one.

    Raises ValueError for a GPU that is missing.
    """
    there = torch.cuda.is_available()
    name = name or ("cuda" if there else "cpu")
    if name == "cuda" and not there:
        raise ValueError("Expected device='cuda' to be here, found none; take 'cpu'.")
    return name
