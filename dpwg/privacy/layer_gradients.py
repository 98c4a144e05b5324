"""Each supported layer's share of a record's gradient: its norm, and its part of the clipped sum.

A rule gets a layer's input a and the gradient g of its output, record by record, and forms the
gradient of a single record only where that is the cheaper way. Norms and sums are float32, and a
norm is never too small by what rounding hides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpwg.privacy.lora import LoRALinear

BFLOAT16_ERROR = 2.0**-8
"""The relative error of rounding to bfloat16, which has 8 significant bits."""
FLOAT32_ERROR = 5e-7
"""More than the relative error of a few float32 roundings."""
FLOAT32_SUM_ERROR = 5e-6
"""The relative error of a float32 sum of some thousands of products."""

ROWS = 1536
"""Positions that are copied to float32 at once: few enough to be in memory only for a moment."""
PART = 2**18
"""Numbers of formed gradients that are taken at once on a CPU: few enough to stay in its cache."""


class Rule(Protocol):
    """How one layer's parameters get their norms and sums from its input and output gradient."""

    def squared_norms(self) -> Tensor:
        """Each record's squared gradient norm, float32 (B,), never too small by rounding."""
        ...

    def add_to(self, sums: dict[str, Tensor], name: str, scale_B: Tensor) -> None:
        """Add the records' gradients times their scale; a scale of 0 drops even inf and NaN."""
        ...


class _FormedLinear:
    """Weight gradients g^T a, formed once for a record's norm and for the sum.

    In bfloat16 they are rounded; what is measured and what is added are the same.
    """

    def __init__(self, layer: nn.Linear, a_BTI: Tensor, g_BTO: Tensor) -> None:
        self.bias_BO = _bias_gradients(layer, g_BTO)
        # (B, O, I), or (B, I, O): the narrow factor is turned.
        self.turned = layer.in_features <= layer.out_features
        self.formed = a_BTI.mT @ g_BTO if self.turned else g_BTO.mT @ a_BTI

    def squared_norms(self) -> Tensor:
        # Not vector_norm: its float32 sums lose up to 8e-4 of large gradients on a CPU.
        squares = [part.float().square().sum((1, 2)) for part in self.formed.split(self._part)]
        bias = 0.0 if self.bias_BO is None else self.bias_BO.square().sum(1)
        return torch.cat(squares) + bias

    def add_to(self, sums: dict[str, Tensor], name: str, scale_B: Tensor) -> None:
        _add_bias(sums, name, self.bias_BO, scale_B)
        total = scale_B.new_zeros(self.formed[0].numel())
        parts = zip(self.formed.split(self._part), scale_B.split(self._part), strict=True)
        for part, scale_R in parts:
            part = _zero_where(part, scale_R == 0).float()
            total.addmv_(part.flatten(1).T, scale_R)
        total = total.view(self.formed.shape[1:])
        sums[parameter_name(name, "weight")] += total.T if self.turned else total

    @property
    def _part(self) -> int:
        """Records that are taken at once."""
        numbers = PART if self.formed.device.type == "cpu" else 64 * PART
        return max(1, numbers // self.formed[0].numel())


class _GramLinear:
    """Weight gradients g^T a that are never formed: norms from Gram matrices, and one sum.

    |g^T a|^2 is the sum over pairs of positions of (a a^T)(g g^T). In bfloat16 the products are
    exact but the two Gram matrices are rounded, in float32 the sums are; what positions that nearly
    cancel could hide behind that is added to the norm.
    """

    def __init__(self, layer: nn.Linear, a_BTI: Tensor, g_BTO: Tensor) -> None:
        self.bias_BO = _bias_gradients(layer, g_BTO)
        self.a_BTI, self.g_BTO = a_BTI, g_BTO

    def squared_norms(self) -> Tensor:
        inputs_BTT = (self.a_BTI @ self.a_BTI.transpose(1, 2)).float()
        outputs_BTT = (self.g_BTO @ self.g_BTO.transpose(1, 2)).float()
        if self.bias_BO is not None:
            inputs_BTT += 1
        products_BTT = inputs_BTT * outputs_BTT
        rounded = self.g_BTO.dtype == torch.bfloat16
        hidden = FLOAT32_SUM_ERROR + (2.01 * BFLOAT16_ERROR if rounded else 0.0)
        return products_BTT.sum((1, 2)) + hidden * products_BTT.abs().sum((1, 2))

    def add_to(self, sums: dict[str, Tensor], name: str, scale_B: Tensor) -> None:
        _add_bias(sums, name, self.bias_BO, scale_B)
        zero_B = scale_B == 0
        a_NI = _zero_where(self.a_BTI, zero_B).flatten(0, 1)
        g_NO = _zero_where(self.g_BTO, zero_B).flatten(0, 1)
        scale_N1 = scale_B.repeat_interleave(self.a_BTI.shape[1])[:, None]
        weight_OI = sums[parameter_name(name, "weight")]
        for start in range(0, len(a_NI), ROWS):
            rows = slice(start, start + ROWS)
            a_RI, g_RO = a_NI[rows].float(), g_NO[rows].float()
            if a_NI.shape[1] < g_NO.shape[1]:  # the narrow one is quicker to scale
                a_RI = a_RI * scale_N1[rows]
            else:
                g_RO = g_RO * scale_N1[rows]
            weight_OI.addmm_(g_RO.T, a_RI)


def _linear_rule(layer: nn.Linear, a_BTI: Tensor, g_BTO: Tensor) -> Rule:
    """Gradients are formed where one is smaller than the rows that it is the product of."""
    T, inputs, outputs = a_BTI.shape[1], layer.in_features, layer.out_features
    smaller = inputs * outputs < T * (inputs + outputs)
    return (_FormedLinear if smaller else _GramLinear)(layer, a_BTI, g_BTO)


def _bias_gradients(layer: nn.Linear, g_BTO: Tensor) -> Tensor | None:
    return None if layer.bias is None else g_BTO.sum(1, dtype=torch.float32)


def _add_bias(sums: dict[str, Tensor], name: str, bias_BO: Tensor | None, scale_B: Tensor) -> None:
    if bias_BO is not None:
        sums[parameter_name(name, "bias")] += scale_B @ _zero_where(bias_BO, scale_B == 0)


class _LoRARule:
    """The pair's two matrices, each a Linear of its own: `down` sees the layer's input, `up` the
    layer's output gradient, and what passes between them is computed here.

    Under autocast that is rounded; what is measured and what is added are the same.
    """

    def __init__(self, layer: LoRALinear, a_BTI: Tensor, g_BTO: Tensor) -> None:
        down_RI, up_OR = (m.weight.to(a_BTI.dtype) for m in (layer.down, layer.up))
        self.rules = {
            "down": _linear_rule(layer.down, a_BTI, g_BTO @ up_OR),
            "up": _linear_rule(layer.up, a_BTI @ down_RI.T, g_BTO),
        }

    def squared_norms(self) -> Tensor:
        return torch.stack([rule.squared_norms() for rule in self.rules.values()]).sum(0)

    def add_to(self, sums: dict[str, Tensor], name: str, scale_B: Tensor) -> None:
        for own, rule in self.rules.items():
            rule.add_to(sums, parameter_name(name, own), scale_B)


class _LayerNormRule:
    """Weight gradient: g times the normalized input, summed over positions; bias: g summed.

    In bfloat16 the products are rounded; what is measured and what is added are the same.
    """

    def __init__(self, layer: nn.LayerNorm, a_BTC: Tensor, g_BTC: Tensor) -> None:
        normal_BTC = F.layer_norm(a_BTC, list(layer.normalized_shape), eps=layer.eps)
        self.gradients = {"weight": (g_BTC * normal_BTC).sum(1, dtype=torch.float32)}
        if layer.bias is not None:
            self.gradients["bias"] = g_BTC.sum(1, dtype=torch.float32)

    def squared_norms(self) -> Tensor:
        return torch.stack([g_BC.square().sum(1) for g_BC in self.gradients.values()]).sum(0)

    def add_to(self, sums: dict[str, Tensor], name: str, scale_B: Tensor) -> None:
        for own, gradient_BC in self.gradients.items():
            sums[parameter_name(name, own)] += scale_B @ _zero_where(gradient_BC, scale_B == 0)


class _EmbeddingRule:
    """Gradient rows g added up by index; every position then holds an equal share of its row."""

    def __init__(self, layer: nn.Embedding, ids_BT: Tensor, g_BTC: Tensor) -> None:
        self.ids_BT = ids_BT.squeeze(-1)
        same_BTT = (self.ids_BT[:, :, None] == self.ids_BT[:, None, :]).float()
        self.count_BT = same_BTT.sum(2)
        self.share_BTC = same_BTT @ g_BTC.float() / self.count_BT[:, :, None]

    def squared_norms(self) -> Tensor:
        return (self.share_BTC.square().sum(2) * self.count_BT).sum(1)

    def add_to(self, sums: dict[str, Tensor], name: str, scale_B: Tensor) -> None:
        scaled = _zero_where(self.share_BTC, scale_B == 0) * scale_B[:, None, None]
        sums[parameter_name(name, "weight")].index_add_(
            0, self.ids_BT.flatten(), scaled.flatten(0, 1)
        )


RULES: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Rule]] = {
    nn.Linear: _linear_rule,
    nn.LayerNorm: _LayerNormRule,
    nn.Embedding: _EmbeddingRule,
    LoRALinear: _LoRARule,
}


def trained_parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the layer's rule is about, by their names within it."""
    if type(layer) is LoRALinear:
        return {name: layer.get_parameter(name) for name in LoRALinear.PAIR}
    return dict(layer.named_parameters(recurse=False))


def parameter_name(layer: str, own: str) -> str:
    return f"{layer}.{own}" if layer else own


def _zero_where(x_B: Tensor, zero_B: Tensor) -> Tensor:
    """x with whole records replaced by zero, so that 0 * inf cannot make NaN."""
    if not zero_B.any():
        return x_B
    return x_B.masked_fill(zero_B.view(-1, *[1] * (x_B.ndim - 1)), 0.0)
