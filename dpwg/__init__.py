"""DP-Wavelet: differentially private text-to-image generation from coarse to fine."""

__version__ = "0.1.0"
