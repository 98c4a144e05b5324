"""Training: the tokenizer and WaveletGPT on public data, then WaveletGPT privately."""
