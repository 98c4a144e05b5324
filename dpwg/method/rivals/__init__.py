"""The generators that DP-Wavelet is compared with, on the same records and the same engine."""
