"""Clipped gradient sums with per-record norms, from one backward pass.

Book-keeping (Bu et al. 2022, arXiv 2210.00038): the forward pass keeps each layer's input a, one
backward pass gives the gradient g of each layer's output. The norm of every record's gradient
follows from a and g, and so does the sum of the clipped gradients; no gradient of a single record
is ever formed where a cheaper way exists. Sensitivity: adding or removing one record moves the sum
by at most `max_grad_norm` in L2 norm, over all trainable parameters together.

This file knows layers, not models: Linear, LayerNorm and Embedding. A trainable parameter that
belongs to anything else is refused by name, and so is one that is used outside its layer. Norms and
sums are float32, whether the model computes in float32, in bfloat16 or under autocast to bfloat16.
Activation checkpointing without reentrance keeps them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

BFLOAT16_ERROR = 2.0**-8
"""The relative error of rounding to bfloat16, which has 8 significant bits."""
FLOAT32_ERROR = 5e-7
"""More than the relative error of a few float32 roundings."""
FLOAT32_SUM_ERROR = 5e-6
"""The relative error of a float32 sum of some thousands of products."""

ROWS = 1536
"""Positions that are copied to float32 at once: few enough to be in memory only for a moment."""


@dataclass(frozen=True, kw_only=True)
class ClippedBatch:
    """What one micro-batch added to the sums. All of it is as private as the records.

    `norms_B` are the gradient norms before clipping, `losses_B` the records' losses; `refused`
    counts records whose gradient was not finite and which therefore contributed zero.
    """

    losses_B: Tensor
    norms_B: Tensor
    refused: int


class ClippedSums:
    """Sums of clipped per-record gradients over the micro-batches of one logical batch.

    `sums` maps the names of the trainable parameters to float32 tensors. The model's parameters are
    frozen for autograd from here on: their gradients come from this class alone.
    """

    def __init__(self, model: nn.Module, *, max_grad_norm: float) -> None:
        if not max_grad_norm > 0:
            raise ValueError(f"Expected max_grad_norm={max_grad_norm} > 0.")
        self.max_grad_norm = max_grad_norm
        self._layers = _trainable_layers(model)
        self._parameters: list[Tensor] = []
        self.sums: dict[str, Tensor] = {}
        for name, layer in self._layers.items():
            for own, parameter in layer.named_parameters(recurse=False):
                self.sums[_parameter_name(name, own)] = torch.zeros_like(
                    parameter, dtype=torch.float32
                )
                self._parameters.append(parameter.requires_grad_(False))

    def zero(self) -> None:
        """Begin a new logical batch."""
        for total in self.sums.values():
            total.zero_()

    def add(self, losses: Callable[[], Tensor], weights_B: Tensor | None = None) -> ClippedBatch:
        """Add one micro-batch: `losses()` runs the model and returns one loss a record, (B,).

        Dimension 0 of every layer's input must be the record. `weights_B` of 0 or 1 mark padding
        and records. Records must not mix in the model: no statistics over the batch.
        """
        with _capture(self._layers) as captured, torch.enable_grad():
            losses_B = losses()
            captured.complete = True
            calls, device = captured.calls, losses_B.device.type
            for call in calls:
                call.check_unchanged()
            with torch.autocast(device, enabled=False):
                own = torch.autograd.grad(
                    losses_B.sum(),
                    [*captured.beginnings, *self._parameters],
                    allow_unused=True,
                )[len(captured.beginnings) :]
        B = len(losses_B)
        for name, gradient in zip(self.sums, own, strict=True):
            if gradient is not None:
                raise ValueError(
                    f"Expected {name!r} to be used by its own layer alone, but the loss depends on "
                    "it in another way too; call the layer, or untie it."
                )
        bfloat16 = all(call.dtype == torch.bfloat16 for call in calls)
        # Two factors rounded on their way into a product: (1 + e)^2 (1 - 2 e) < 1.
        bound = self.max_grad_norm * (1 - 2 * (BFLOAT16_ERROR if bfloat16 else FLOAT32_ERROR))
        with (
            torch.no_grad(),
            torch.autocast(device, enabled=False),
            _float32_products(bfloat16_inputs=bfloat16),
        ):
            by_layer: dict[str, list[tuple[Tensor, Tensor]]] = {}
            for call in calls:
                if call.gradient is not None:
                    pair = _by_record(call.name, call.input, call.gradient, B)
                    by_layer.setdefault(call.name, []).append(pair)
            rules = {
                name: _RULES[type(self._layers[name])](self._layers[name], *_joined(pairs))
                for name, pairs in by_layer.items()
            }
            squares_B = torch.zeros(B, device=losses_B.device)
            for rule in rules.values():
                squares_B += rule.squared_norms()
            norms_B = squares_B.sqrt()
            finite_B = norms_B.isfinite()
            scale_B = (bound / norms_B.clamp(min=1e-30)).clamp(max=1.0)
            scale_B = torch.where(finite_B, scale_B, 0.0)
            if weights_B is not None:
                scale_B = scale_B * weights_B
            for name, rule in rules.items():
                rule.add_to(self.sums, name, scale_B)
        real_B = torch.ones_like(finite_B) if weights_B is None else weights_B > 0
        return ClippedBatch(
            losses_B=losses_B.detach(),
            norms_B=norms_B,
            refused=int((real_B & ~finite_B).sum()),
        )


@dataclass(kw_only=True)
class _Call:
    """One call of a layer. The output is let go before the backward pass fills in its gradient, so
    that a gradient takes the place of its output in memory.
    """

    name: str
    input: Tensor
    output: Tensor | None
    versions: tuple[int, int]
    dtype: torch.dtype
    gradient: Tensor | None = None

    def check_unchanged(self) -> None:
        output, self.output = self.output, None
        if output is None or (self.input._version, output._version) != self.versions:
            raise ValueError(
                f"Expected the input and output of {self.name!r} to stay as they were, but the "
                "model changed one in place; use the operation that returns a new tensor."
            )

    def keep(self, gradient: Tensor) -> None:
        self.gradient = gradient


@dataclass(kw_only=True)
class _Captured:
    """The calls of the forward pass, `complete` before the backward pass runs blocks again.

    `beginnings` are the outputs that depend on no earlier layer: a gradient of those passes through
    all others on its way.
    """

    calls: list[_Call] = field(default_factory=list)
    beginnings: list[Tensor] = field(default_factory=list)
    complete: bool = False


class _Rule(Protocol):
    """How one layer's parameters get their norms and sums from its input and output gradient."""

    def __init__(self, layer: Any, a: Tensor, g: Tensor) -> None: ...

    def squared_norms(self) -> Tensor:
        """Each record's squared gradient norm, float32 (B,), never too small by rounding."""
        ...

    def add_to(self, sums: dict[str, Tensor], name: str, scale_B: Tensor) -> None:
        """Add the records' gradients times their scale; a scale of 0 drops even inf and NaN."""
        ...


class _LinearRule:
    """Weight gradient g^T a of a record; its norm from Gram matrices where they are smaller.

    |g^T a|^2 is the sum over pairs of positions of (a a^T)(g g^T). In bfloat16 the products are
    exact but the two Gram matrices are rounded, in float32 the sums are; what positions that nearly
    cancel could hide behind that is added to the norm.
    """

    def __init__(self, layer: nn.Linear, a_BTI: Tensor, g_BTO: Tensor) -> None:
        self.a_BTI, self.g_BTO = a_BTI, g_BTO
        self.has_bias = layer.bias is not None
        T, inputs, outputs = a_BTI.shape[1], a_BTI.shape[2], g_BTO.shape[2]
        # In bfloat16 these are rounded; what is measured and what is added are the same.
        self.per_record: Tensor | None = None  # (B, O, I), or (B, I, O): the narrow one is turned
        self.turned = inputs <= outputs
        if inputs * outputs < T * (inputs + outputs):
            self.per_record = a_BTI.mT @ g_BTO if self.turned else g_BTO.mT @ a_BTI

    def squared_norms(self) -> Tensor:
        if self.per_record is not None:
            # Not vector_norm: its float32 sums lose up to 8e-4 of large gradients on a CPU.
            squares_B = self.per_record.float().square().sum((1, 2))
            if self.has_bias:
                bias_BO = self.g_BTO.sum(1, dtype=torch.float32)
                squares_B = squares_B + bias_BO.square().sum(1)
            return squares_B
        inputs_BTT = (self.a_BTI @ self.a_BTI.transpose(1, 2)).float()
        outputs_BTT = (self.g_BTO @ self.g_BTO.transpose(1, 2)).float()
        if self.has_bias:
            inputs_BTT += 1
        products_BTT = inputs_BTT * outputs_BTT
        rounded = self.g_BTO.dtype == torch.bfloat16
        hidden = FLOAT32_SUM_ERROR + (2.01 * BFLOAT16_ERROR if rounded else 0.0)
        return products_BTT.sum((1, 2)) + hidden * products_BTT.abs().sum((1, 2))

    def add_to(self, sums: dict[str, Tensor], name: str, scale_B: Tensor) -> None:
        zero_B = scale_B == 0
        if self.has_bias:
            bias_BO = self.g_BTO.sum(1, dtype=torch.float32)
            sums[_parameter_name(name, "bias")] += scale_B @ _zero_where(bias_BO, zero_B)
        if self.per_record is not None:
            finite = _zero_where(self.per_record, zero_B).float()
            total = torch.tensordot(scale_B, finite, dims=1)
            sums[_parameter_name(name, "weight")] += total.T if self.turned else total
            return
        a_NI = _zero_where(self.a_BTI, zero_B).flatten(0, 1)
        g_NO = _zero_where(self.g_BTO, zero_B).flatten(0, 1)
        scale_N1 = scale_B.repeat_interleave(self.a_BTI.shape[1])[:, None]
        weight_OI = sums[_parameter_name(name, "weight")]
        for start in range(0, len(a_NI), ROWS):
            rows = slice(start, start + ROWS)
            a_RI, g_RO = a_NI[rows].float(), g_NO[rows].float()
            if a_NI.shape[1] < g_NO.shape[1]:  # the narrow one is quicker to scale
                a_RI = a_RI * scale_N1[rows]
            else:
                g_RO = g_RO * scale_N1[rows]
            weight_OI.addmm_(g_RO.T, a_RI)


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
            sums[_parameter_name(name, own)] += scale_B @ _zero_where(gradient_BC, scale_B == 0)


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
        sums[_parameter_name(name, "weight")].index_add_(
            0, self.ids_BT.flatten(), scaled.flatten(0, 1)
        )


_RULES: dict[type[nn.Module], type[_Rule]] = {
    nn.Linear: _LinearRule,
    nn.LayerNorm: _LayerNormRule,
    nn.Embedding: _EmbeddingRule,
}


def _parameter_name(layer: str, own: str) -> str:
    return f"{layer}.{own}" if layer else own


def _trainable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that hold trainable parameters, by name; anything unsupported is refused."""
    layers: dict[str, nn.Module] = {}
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) or getattr(module, "track_running_stats", False):
            raise ValueError(
                f"Expected {name or 'the model'!r} to keep no statistics over records, found "
                f"{type(module).__name__}; use LayerNorm."
            )
        own = {n: p for n, p in module.named_parameters(recurse=False) if p.requires_grad}
        if not own:
            continue
        if type(module) not in _RULES:
            raise ValueError(
                f"Expected the trainable parameters {sorted(own)} of {name or 'the model'!r} to "
                f"belong to Linear, LayerNorm or Embedding, found {type(module).__name__}; freeze "
                "them or build the layer from those."
            )
        if not own.keys() <= {"weight", "bias"}:
            raise ValueError(
                f"Expected a weight and a bias in {name!r}, found {sorted(own)}; remove the "
                "reparametrization."
            )
        if len(own) < len(list(module.parameters(recurse=False))):
            raise ValueError(f"Expected all parameters of {name!r} trainable or none; freeze both.")
        if isinstance(module, nn.Embedding) and (
            module.padding_idx is not None
            or module.max_norm is not None
            or module.scale_grad_by_freq
        ):
            raise ValueError(
                f"Expected no padding_idx, max_norm or scale_grad_by_freq in {name!r}; remove it."
            )
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
            raise ValueError(f"Expected {name!r} to normalize one dimension; flatten the others.")
        for parameter in own.values():
            if id(parameter) in owners:
                raise ValueError(
                    f"{name!r} shares a parameter with {owners[id(parameter)]!r}; untie them."
                )
            owners[id(parameter)] = name
        layers[name] = module
    if not layers:
        raise ValueError("Expected a model with trainable parameters, found none.")
    return layers


@contextmanager
def _capture(layers: dict[str, nn.Module]) -> Iterator[_Captured]:
    """Keep the input and the output of every call of the layers.

    Inside its layer's call a parameter is a constant, outside it is not: a gradient of it is one of
    a use that no layer has seen.
    """
    captured, handles = _Captured(), list[RemovableHandle]()

    def keeper(name: str) -> Callable[..., Tensor]:
        def keep(
            layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
        ) -> Tensor:
            layer.requires_grad_(True)
            if not torch.is_grad_enabled():
                raise ValueError(
                    f"Expected {name!r} to be called with gradients on, but something turned them "
                    "off; detach what it returns, and checkpoint with use_reentrant=False."
                )
            begins = not output.requires_grad  # nothing trainable before
            if begins:
                output = output.detach().requires_grad_()
            if not captured.complete:
                kept = (inputs[0] if inputs else named["input"]).detach()
                call = _Call(
                    name=name,
                    input=kept,
                    output=output,
                    versions=(kept._version, output._version),
                    dtype=output.dtype,
                )
                output.register_hook(call.keep)
                captured.calls.append(call)
                if begins:
                    captured.beginnings.append(output)
            return output

        return keep

    def freeze(layer: nn.Module, _: tuple[Tensor, ...]) -> None:
        layer.requires_grad_(False)

    for name, layer in layers.items():
        handles.append(layer.requires_grad_(True).register_forward_pre_hook(freeze))
        handles.append(layer.register_forward_hook(keeper(name), prepend=True, with_kwargs=True))
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers.values():
            layer.requires_grad_(False)


def _by_record(name: str, a: Tensor, g: Tensor, B: int) -> tuple[Tensor, Tensor]:
    """A call's input and output gradient as (B, T, features)."""
    if a.shape[0] != B or g.shape[0] != B:
        raise ValueError(
            f"Expected dimension 0 of {name!r} to be the {B} records, found {tuple(a.shape)}; "
            "keep the batch dimension apart and expand what is the same for all records."
        )
    if g.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"Expected {name!r} in float32 or bfloat16, found {g.dtype}.")
    a = a.to(g.dtype) if a.is_floating_point() else a.unsqueeze(-1)  # as autocast has it
    return a.reshape(B, -1, a.shape[-1]), g.reshape(B, -1, g.shape[-1])


def _joined(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Several calls of a layer are more positions of the same record."""
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([a for a, _ in pairs], dim=1), torch.cat([g for _, g in pairs], dim=1)


def _zero_where(x_B: Tensor, zero_B: Tensor) -> Tensor:
    """x with whole records replaced by zero, so that 0 * inf cannot make NaN."""
    if not zero_B.any():
        return x_B
    return x_B.masked_fill(zero_B.view(-1, *[1] * (x_B.ndim - 1)), 0.0)


@contextmanager
def _float32_products(*, bfloat16_inputs: bool) -> Iterator[None]:
    """Let oneDNN multiply float32 tensors that hold bfloat16 values with bfloat16 instructions.

    Products and sums stay float32. What is not bfloat16 already (scales, scaled gradients) may be
    rounded on its way in, by `BFLOAT16_ERROR` at most; `ClippedSums.add` leaves room for that.
    Float32 inputs are multiplied in full, whatever precision the caller has set, and on a GPU.
    """
    cpu: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    gpu: Any = torch.backends.cuda.matmul
    before = cpu.fp32_precision, gpu.fp32_precision
    cpu.fp32_precision = "bf16" if bfloat16_inputs else "ieee"
    gpu.fp32_precision = "ieee"
    try:
        yield
    finally:
        cpu.fp32_precision, gpu.fp32_precision = before
