"""Rendering DiceBear avatars: deterministic in the options, 128x128 PNG."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

IMAGE_SIZE = 128


@functools.cache
def _definition(style: str) -> dict[str, Any]:
    text = files("dicebear_styles").joinpath(f"{style}.json").read_text("utf-8")
    return json.loads(text)


@functools.cache
def _style(name: str) -> Any:
    from dicebear import Style

    return Style(_definition(name))


@functools.cache
def variants(style: str, component: str) -> tuple[str, ...]:
    """The names of a component's variants; empty where the style has no such component."""
    return tuple(_definition(style)["components"].get(component, {}).get("variants", ()))


def render(style: str, options: Mapping[str, object], *, background: str) -> bytes:
    """Render one avatar of `style` on a plain background ("#rrggbb") to PNG bytes, 128x128.

    `options` are DiceBear's; whatever they leave open is resolved from options["seed"].
    """
    import resvg_py
    from dicebear import Avatar

    svg = Avatar(_style(style), {**options, "size": IMAGE_SIZE}).to_string()
    png = resvg_py.svg_to_bytes(
        svg_string=svg,
        background=background,
        width=IMAGE_SIZE,
        height=IMAGE_SIZE,
        skip_system_fonts=True,
    )
    return bytes(png)
