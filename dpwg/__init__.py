"""DP-Wavelet: differentially private text-to-image generation from coarse to fine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpwg.method.pipeline import DPWaveletPipeline

__all__ = ["DPWaveletPipeline", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> type[DPWaveletPipeline]:
    """The pipeline, which brings PyTorch, when it is first asked for."""
    if name != "DPWaveletPipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dpwg.method.pipeline import DPWaveletPipeline

    return DPWaveletPipeline
