"""Colour names with their sRGB values, shared by the rendered sets and their captions."""

from __future__ import annotations

import random
from collections.abc import Mapping

SKIN = {
    "pale": "#ffdbb4",
    "light": "#edb98a",
    "tan": "#d08b5b",
    "brown": "#ae5d29",
    "dark brown": "#614335",
}
HAIR = {
    "black": "#2c1b18",
    "dark brown": "#4a312c",
    "brown": "#724133",
    "auburn": "#a55728",
    "light brown": "#b58143",
    "blonde": "#d6b370",
    "platinum blonde": "#ecdcbf",
    "red": "#c93305",
    "pink": "#f59797",
    "silver": "#e8e1e1",
}
DYED_HAIR = {"blue": "#4f6fe0", "green": "#3fae54", "purple": "#7b4fc9", "teal": "#1f9c94"}
CLOTHES = {
    "black": "#262e33",
    "gray": "#929598",
    "white": "#ffffff",
    "navy blue": "#25557c",
    "blue": "#5199e4",
    "sky blue": "#65c9ff",
    "mint green": "#a7ffc4",
    "green": "#3fae54",
    "yellow": "#ffe14d",
    "peach": "#ffdeb5",
    "pastel pink": "#ffafb9",
    "hot pink": "#ff488e",
    "red": "#ff5c5c",
    "purple": "#8a63d2",
}
BACKGROUND = {
    "white": "#ffffff",
    "gray": "#b4bac2",
    "yellow": "#ffd84d",
    "orange": "#ff9f45",
    "red": "#e0555b",
    "pink": "#ffb3c7",
    "lavender": "#c9bbf7",
    "purple": "#8a63d2",
    "blue": "#4f8fea",
    "sky blue": "#a8d8ff",
    "teal": "#2fa39a",
    "green": "#74c476",
}


def pick(rng: random.Random, *palettes: Mapping[str, str], jitter: int = 0) -> tuple[str, str]:
    """Draw (name, "#rrggbb") uniformly, each channel moved by at most `jitter` of 255."""
    colours = {name: value for palette in palettes for name, value in palette.items()}
    name = rng.choice(sorted(colours))
    channels = (int(colours[name][i : i + 2], 16) for i in (1, 3, 5))
    moved = (min(255, max(0, c + rng.randint(-jitter, jitter))) for c in channels)
    return name, "#" + "".join(f"{c:02x}" for c in moved)
