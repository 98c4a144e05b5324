"""What tabs hand to each other: the pictures shown last, and captions and seeds to begin with."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.ui.families import family_of, first_caption


class Shown(NamedTuple):
    """The images of the last generation, for the other tabs and the slider."""

    checkpoint: str
    coarse: np.ndarray
    image: np.ndarray
    title: str


def random_seed() -> int:
    """A seed that is short enough to be read out."""
    return random.randrange(1_000_000)


def shown_or_example(
    shown: Shown | None,
    name: str,
    load: Callable[[], DPWaveletPipeline],
    family: str | None = None,
) -> Shown:
    """The last generation; without one, an example under the checkpoint that `load` loads, which is
    one of `family`, by default of that in its name.
    """
    if shown is not None:
        return shown
    result = load()(first_caption(family_of(name) if family is None else family), seed=0)
    return Shown(name, result.coarse, result.image, f"An example of {name}, seed 0")
