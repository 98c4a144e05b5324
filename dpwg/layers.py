"""The transformer block that the tokenizer and WaveletGPT share.

Only layers whose per-record gradients the privacy engine knows: Linear, LayerNorm, Embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeyValueCache:
    """The keys and values that one block has seen so far."""

    def __init__(self) -> None:
        self.key_BHSD: Tensor | None = None
        self.value_BHSD: Tensor | None = None

    def extend(self, key_BHTD: Tensor, value_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Append this step's keys and values; returns all of them."""
        if self.key_BHSD is not None and self.value_BHSD is not None:
            key_BHTD = torch.cat((self.key_BHSD, key_BHTD), dim=2)
            value_BHTD = torch.cat((self.value_BHSD, value_BHTD), dim=2)
        self.key_BHSD, self.value_BHSD = key_BHTD, value_BHTD
        return key_BHTD, value_BHTD


class Block(nn.Module):
    """Pre-norm attention and a GELU network of four times the width.

    With `prefix_width`, every position also attends to a prefix: keys and values projected from
    states of that width. Attention is two plain batched matrix products, which is the fastest form
    for sequences this short.
    """

    def __init__(self, width: int, heads: int, prefix_width: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.prefix_kv = nn.Linear(prefix_width, 2 * width) if prefix_width else None
        self.attention_out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(
        self,
        x_BTC: Tensor,
        bias: Tensor,
        prefix_BLD: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """`bias` is added to the attention scores and broadcasts to (B, H, T, S): -inf bars.

        S counts the prefix, then what the cache holds, then the T positions of this call. With a
        cache the prefix is given in the first call only.
        """
        x_BTC = x_BTC + self.attention_out(self._attend(x_BTC, bias, prefix_BLD, cache))
        hidden = F.gelu(self.mlp_in(self.norm_mlp(x_BTC)), approximate="tanh")
        return x_BTC + self.mlp_out(hidden)

    def _attend(
        self,
        x_BTC: Tensor,
        bias: Tensor,
        prefix_BLD: Tensor | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        query, key, value = self._heads(self.qkv(self.norm_attention(x_BTC)), 3)
        if self.prefix_kv is not None and prefix_BLD is not None:
            prefix_key, prefix_value = self._heads(self.prefix_kv(prefix_BLD), 2)
            key = torch.cat((prefix_key, key), dim=2)
            value = torch.cat((prefix_value, value), dim=2)
        if cache is not None:
            key, value = cache.extend(key, value)
        scores_BHTS = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + bias
        mixed_BHTD = scores_BHTS.softmax(-1).to(value.dtype) @ value
        return mixed_BHTD.transpose(1, 2).flatten(2)

    def _heads(self, x_BTC: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, T, parts * C) -> `parts` tensors (B, H, T, C / H)."""
        return x_BTC.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
