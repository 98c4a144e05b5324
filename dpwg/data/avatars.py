"""Rendering DiceBear avatars: deterministic in the options, 128x128 PNG."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.resources import files

IMAGE_SIZE = 128


@functools.cache
def _style(name: str):  # type: ignore[no-untyped-def]
    from dicebear import Style

    definition = json.loads(files("dicebear_styles").joinpath(f"{name}.json").read_text("utf-8"))
    return Style(definition)


@functools.cache
def variants(style: str, component: str) -> tuple[str, ...]:
    """The names of a component's variants; empty where the style has no such component."""
    path = files("dicebear_styles").joinpath(f"{style}.json")
    components = json.loads(path.read_text("utf-8"))["components"]
    return tuple(components[component]["variants"]) if component in components else ()


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
