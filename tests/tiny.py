"""Presets with the same structure as the real ones, so small that a test trains them."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from dpwg.config import ModelConfig, SuperResolutionConfig, TokenizerConfig
from dpwg.training.presets import Preset

C = TypeVar("C", TokenizerConfig, ModelConfig, SuperResolutionConfig)


def shrunk(preset: Preset, by: int) -> Preset:
    """Widths, blocks, channels and codebooks divided; images, positions and codes as before."""
    tokenizer, model = _divided(preset.tokenizer, by), _divided(preset.model, by)
    return dataclasses.replace(
        preset,
        tokenizer=tokenizer,
        model=dataclasses.replace(model, codebook_sizes=tokenizer.codebook_sizes),
        superresolution=_divided(preset.superresolution, by),
    )


def _divided(config: C, by: int) -> C:
    changed: dict[str, Any] = {"heads": 2}
    for name, value in config.to_json().items():
        if name in ("width", "code_hidden", "channels"):
            changed[name] = max(8, value // by) if value else 0
        elif name.endswith("blocks") or name == "residuals":
            changed[name] = max(1, value // by)
        elif name == "codebook_sizes":
            changed[name] = tuple(max(4, size // by) for size in value)
    return dataclasses.replace(config, **changed)
