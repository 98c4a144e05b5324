"""Clipped gradient sums with per-record norms, from one backward pass.

Book-keeping (Bu et al. 2022, arXiv 2210.00038): the forward pass keeps each layer's input a, one
backward pass gives the gradient g of each layer's output. The norm of every record's gradient
follows from a and g, and so does the sum of the clipped gradients; no gradient of a single record
is ever formed where a cheaper way exists. Sensitivity: adding or removing one record moves the sum
by at most `max_grad_norm` in L2 norm, over all trainable parameters together, as long as records do
not mix in the model: `preflight.check_apart` sees to that before a run.

The rules know layers, not models: Linear, LayerNorm, Embedding and LoRALinear. A trainable
parameter that belongs to anything else is refused by name, and so is one that is used outside its
layer. Norms and sums are float32, whether the model computes in float32, in bfloat16 or under
autocast to bfloat16. Activation checkpointing without reentrance keeps them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dpwg.privacy.layer_gradients import (
    BFLOAT16_ERROR,
    FLOAT32_ERROR,
    RULES,
    parameter_name,
    trained_parameters,
)
from dpwg.privacy.lora import LoRALinear
from dpwg.privacy.preflight import trainable_layers


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
        self._layers = trainable_layers(model)
        self._parameters = {
            parameter_name(name, own): parameter.requires_grad_(False)
            for name, layer in self._layers.items()
            for own, parameter in trained_parameters(layer).items()
        }
        self.sums = {
            name: torch.zeros_like(parameter, dtype=torch.float32)
            for name, parameter in self._parameters.items()
        }

    def zero(self) -> None:
        """Begin a new logical batch."""
        for total in self.sums.values():
            total.zero_()

    def add(self, losses: Callable[[], Tensor], real_B: Tensor | None = None) -> ClippedBatch:
        """Add one micro-batch: `losses()` runs the model and returns one loss a record, (B,).

        Dimension 0 of every layer's input must be the record. `real_B`, bool, is false for padding,
        which adds nothing.
        """
        losses_B, calls = self._backward(losses)
        real_B = torch.ones_like(losses_B, dtype=torch.bool) if real_B is None else real_B
        if losses_B.ndim != 1 or (real_B.shape, real_B.dtype) != (losses_B.shape, torch.bool):
            raise ValueError(
                f"Expected losses and real_B of shape (B,), real_B bool, found "
                f"{tuple(losses_B.shape)} and {tuple(real_B.shape)} {real_B.dtype}."
            )
        B, device = len(losses_B), losses_B.device
        bfloat16 = bool(calls) and all(call.dtype == torch.bfloat16 for call in calls)
        # Two factors rounded on their way into a product: (1 + e)^2 (1 - 2 e) < 1.
        bound = self.max_grad_norm * (1 - 2 * (BFLOAT16_ERROR if bfloat16 else FLOAT32_ERROR))
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            _float32_products(bfloat16_inputs=bfloat16),
        ):
            by_layer: dict[str, list[tuple[Tensor, Tensor]]] = {}
            for call in calls:
                if call.gradient is not None:
                    pair = _by_record(call.name, call.input, call.gradient, B)
                    by_layer.setdefault(call.name, []).append(pair)
            rules = {
                name: RULES[type(self._layers[name])](self._layers[name], *_joined(pairs))
                for name, pairs in by_layer.items()
            }
            squares_B = torch.zeros(B, device=device)
            for rule in rules.values():
                squares_B += rule.squared_norms()
            norms_B = squares_B.sqrt()
            finite_B = norms_B.isfinite()
            scale_B = (bound / norms_B.clamp(min=1e-30)).clamp(max=1.0)
            scale_B = torch.where(finite_B & real_B, scale_B, 0.0)
            for name, rule in rules.items():
                rule.add_to(self.sums, name, scale_B)
        return ClippedBatch(
            losses_B=losses_B.detach(), norms_B=norms_B, refused=int((real_B & ~finite_B).sum())
        )

    def _backward(self, losses: Callable[[], Tensor]) -> tuple[Tensor, list[_Call]]:
        """The losses, and every call of a layer with the gradient of its output.

        Raises ValueError for a parameter that the loss depends on past its layer.
        """
        with _capture(self._layers) as captured, torch.enable_grad():
            losses_B = losses()
            captured.complete = True
            for call in captured.calls:
                if call.input._version != call.version:
                    raise ValueError(
                        f"Expected the input of {call.name!r} to stay as it was, but the model "
                        "changed it in place; use the operation that returns a new tensor."
                    )
            if not losses_B.numel():
                return losses_B, []
            starts = captured.beginnings
            with torch.autocast(losses_B.device.type, enabled=False):
                past_layers = torch.autograd.grad(
                    losses_B.sum(), [*starts, *self._parameters.values()], allow_unused=True
                )[len(starts) :]
        for name, gradient in zip(self.sums, past_layers, strict=True):
            if gradient is not None:
                raise ValueError(
                    f"Expected {name!r} to be used by its own layer alone, but the loss depends on "
                    "it in another way too; call the layer, or untie it."
                )
        return losses_B, captured.calls


@dataclass(kw_only=True)
class _Call:
    """One call of a layer, and the gradient of its output once the backward pass is through."""

    name: str
    input: Tensor
    version: int
    dtype: torch.dtype
    gradient: Tensor | None = None


@dataclass(kw_only=True)
class _Captured:
    """The calls of the forward pass, `complete` before the backward pass runs blocks again.

    `beginnings` are the outputs that depend on no earlier layer: a gradient of those passes through
    all others on its way.
    """

    calls: list[_Call] = field(default_factory=list)
    beginnings: list[Tensor] = field(default_factory=list)
    complete: bool = False


def _set_trainable(layer: nn.Module, trainable: bool) -> None:
    for parameter in trained_parameters(layer).values():
        parameter.requires_grad_(trainable)


@contextmanager
def _capture(layers: dict[str, nn.Module]) -> Iterator[_Captured]:
    """Keep the input of every call of the layers, and the gradient of its output.

    Inside its layer's call a parameter is a constant, outside it is not: a gradient of it is one of
    a use that no layer has seen. A LoRALinear computes with its merged weight.
    """
    captured, handles = _Captured(), list[RemovableHandle]()

    def keeper(name: str) -> Callable[..., Tensor]:
        def keep(
            layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
        ) -> Tensor:
            _set_trainable(layer, True)
            if not torch.is_grad_enabled():
                raise ValueError(
                    f"Expected {name!r} to be called with gradients on, but something turned them "
                    "off; detach what it returns, and checkpoint with use_reentrant=False."
                )
            if not output.requires_grad:  # nothing trainable before
                start = output.detach().requires_grad_()
                if not captured.complete:
                    captured.beginnings.append(start)
                output = start
            # The same numbers, but no leaf, nor a view: the model may work in place.
            output = torch.ops.aten._unsafe_view(output, output.shape)
            if not captured.complete:
                kept = (inputs[0] if inputs else named["input"]).detach()
                call = _Call(name=name, input=kept, version=kept._version, dtype=output.dtype)
                output.register_hook(partial(setattr, call, "gradient"))
                captured.calls.append(call)
            return output

        return keep

    def freeze(layer: nn.Module, _: tuple[Tensor, ...]) -> None:
        _set_trainable(layer, False)

    try:
        for name, layer in layers.items():
            _set_trainable(layer, True)
            if isinstance(layer, LoRALinear):
                layer.merged = layer.mergeable()
                if not layer.merged:
                    raise ValueError(
                        f"Expected {name!r} to be three plain float32 Linears without hooks, as it "
                        "was; make new sums for the changed model."
                    )
            handles.append(layer.register_forward_pre_hook(freeze))
            handles.append(
                layer.register_forward_hook(keeper(name), prepend=True, with_kwargs=True)
            )
        yield captured
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers.values():
            _set_trainable(layer, False)
            if isinstance(layer, LoRALinear):
                layer.merged = False


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


@contextmanager
def _float32_products(*, bfloat16_inputs: bool) -> Iterator[None]:
    """Let oneDNN multiply float32 tensors that hold bfloat16 values with bfloat16 instructions.

    Products and sums stay float32. What is not bfloat16 already (scales, scaled gradients) may be
    rounded on its way in, by `BFLOAT16_ERROR` at most; `ClippedSums.add` leaves room for that.
    Float32 inputs are multiplied in full, whatever precision the caller has set, and on a GPU.
    There partial sums of bfloat16 products are float32 too, as the bounds of the norms suppose.
    """
    cpu: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    gpu: Any = torch.backends.cuda.matmul
    before = cpu.fp32_precision, gpu.fp32_precision
    reduced = gpu.allow_bf16_reduced_precision_reduction
    gpu.allow_bf16_reduced_precision_reduction = False
    cpu.fp32_precision = "bf16" if bfloat16_inputs else "ieee"
    gpu.fp32_precision = "ieee"
    try:
        yield
    finally:
        cpu.fp32_precision, gpu.fp32_precision = before
        gpu.allow_bf16_reduced_precision_reduction = reduced
