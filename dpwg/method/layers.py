"""What several models share: the transformer block, the pair of convolutions, the loss.

The block has only layers whose per-record gradients the privacy engine knows: Linear, LayerNorm,
Embedding. Convolutions are for the public parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeyValueCache:
    """The keys and values that one block has seen so far, with room for `length` positions.

    Kept in place: to copy them at every position would take longer than the block itself.
    """

    def __init__(self, length: int) -> None:
        self._length, self._filled = length, 0
        self._key_BHSD = self._value_BHSD = torch.empty(0)

    def extend(self, key_BHTD: Tensor, value_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Append this step's keys and values; returns all of them."""
        begin, self._filled = self._filled, self._filled + key_BHTD.shape[2]
        if not begin:
            B, H, _, D = key_BHTD.shape
            self._key_BHSD = key_BHTD.new_empty(B, H, self._length, D)
            self._value_BHSD = torch.empty_like(self._key_BHSD)
        self._key_BHSD[:, :, begin : self._filled] = key_BHTD
        self._value_BHSD[:, :, begin : self._filled] = value_BHTD
        return self._key_BHSD[:, :, : self._filled], self._value_BHSD[:, :, : self._filled]

    def keep(self, row_N: Tensor) -> None:
        """Go on with these rows of the batch."""
        self._key_BHSD, self._value_BHSD = self._key_BHSD[row_N], self._value_BHSD[row_N]

    def join(self, others: Sequence[KeyValueCache]) -> None:
        """Go on with the rows of others behind these; they have seen as many positions."""
        every = (self, *others)
        self._key_BHSD = torch.cat([cache._key_BHSD for cache in every])
        self._value_BHSD = torch.cat([cache._value_BHSD for cache in every])


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


class Residual(nn.Module):
    """Two 3x3 convolutions that add to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        hidden = F.gelu(self.conv_in(x_BChw), approximate="tanh")
        out: Tensor = x_BChw + self.conv_out(hidden)
        return out


def cross_entropy(logits_NV: Tensor, index_N: Tensor) -> Tensor:
    """-log softmax(logits)[index] in nats, float32 (N,), computed in float32 whatever the dtype.

    A float32 copy of all logits, and of their gradient, would be the largest tensors of a training
    step; this goes through the rows in parts that stay in the cache, and keeps one tensor of the
    logits' own dtype.
    """
    losses_N: Tensor = _CrossEntropy.apply(logits_NV, index_N)  # type: ignore[no-untyped-call]
    return losses_N


class _CrossEntropy(torch.autograd.Function):
    ROWS = 256

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, index_N: Tensor) -> Tensor:
        gradient_NV = torch.empty_like(logits_NV) if ctx.needs_input_grad[0] else None
        losses_N = torch.empty(len(logits_NV), device=logits_NV.device)
        for start in range(0, len(logits_NV), _CrossEntropy.ROWS):
            rows = slice(start, start + _CrossEntropy.ROWS)
            logs_RV = logits_NV[rows].float().log_softmax(-1)
            index_R1 = index_N[rows, None]
            losses_N[rows] = -logs_RV.gather(1, index_R1).squeeze(1)
            if gradient_NV is not None:
                probabilities_RV = logs_RV.exp_()
                probabilities_RV.scatter_add_(
                    1, index_R1, probabilities_RV.new_full(index_R1.shape, -1.0)
                )
                gradient_NV[rows] = probabilities_RV
        ctx.save_for_backward(gradient_NV)
        return losses_N

    @staticmethod
    def backward(ctx: Any, loss_gradient_N: Tensor) -> tuple[Tensor, None]:
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV * loss_gradient_N[:, None].to(gradient_NV.dtype), None
