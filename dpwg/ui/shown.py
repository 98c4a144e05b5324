"""What tabs hand to each other: the pictures shown last, and captions and seeds to begin with."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpwg.pipeline import DPWaveletPipeline

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "captions.txt"


class Shown(NamedTuple):
    """The images of the last generation, for the other tabs and the slider."""

    checkpoint: str
    coarse: np.ndarray
    image: np.ndarray
    title: str


def random_seed() -> int:
    """A seed that is short enough to be read out."""
    return random.randrange(1_000_000)


def example_captions() -> list[str]:
    """The lines of examples/captions.txt; none where the package is used without it."""
    return EXAMPLES.read_text().splitlines() if EXAMPLES.exists() else []


def shown_or_example(
    shown: Shown | None, name: str, load: Callable[[], DPWaveletPipeline]
) -> Shown:
    """The last generation; without one, an example under the checkpoint that `load` loads."""
    if shown is not None:
        return shown
    lines = example_captions()
    result = load()(lines[0] if lines else "", seed=0)
    return Shown(name, result.coarse, result.image, f"An example of {name}, seed 0")
