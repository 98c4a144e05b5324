"""Colour names with their sRGB values, shared by the rendered sets and their captions."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

_TABLE: dict[str, dict[str, str]] = json.loads(Path(__file__).with_suffix(".json").read_bytes())
SKIN, HAIR, DYED_HAIR, CLOTHES, BACKGROUND = _TABLE.values()


def pick(rng: random.Random, *palettes: Mapping[str, str], jitter: int = 0) -> tuple[str, str]:
    """Draw (name, "#rrggbb") uniformly, each channel moved by at most `jitter` of 255."""
    colours = {name: value for palette in palettes for name, value in palette.items()}
    name = rng.choice(sorted(colours))
    moved = (
        min(255, max(0, c + rng.randint(-jitter, jitter))) for c in bytes.fromhex(colours[name][1:])
    )
    return name, "#" + "".join(f"{c:02x}" for c in moved)
