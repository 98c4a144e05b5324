"""DP-Wavelet itself: wavelets, tokenizer, transformer, sampling, pipeline."""
