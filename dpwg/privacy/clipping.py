"""Clipped gradient sums with per-record norms, from one backward pass.

Book-keeping (Bu et al. 2022, arXiv 2210.00038): the forward pass keeps each layer's input a, one
backward pass gives the gradient g of each layer's output. The norm of every record's gradient
follows from a and g, and so does the sum of the clipped gradients; no gradient of a single record
is ever formed where a cheaper way exists. Sensitivity: adding or removing one record moves the sum
by at most `max_grad_norm` in L2 norm, over all trainable parameters together.

The rules know layers, not models: Linear, LayerNorm, Embedding and LoRALinear. A trainable
parameter that belongs to anything else is refused by name, and so is one that is used outside its
layer, and a model whose records mix behind its first trainable layer; before that the caller keeps
them apart.
Norms and sums are float32, whether the model computes in float32, in bfloat16 or under autocast to
bfloat16. Activation checkpointing without reentrance keeps them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
        self._known_apart = False
        self._parameters: list[Tensor] = []
        self.sums: dict[str, Tensor] = {}
        for name, layer in self._layers.items():
            for own, parameter in trained_parameters(layer).items():
                self.sums[parameter_name(name, own)] = torch.zeros_like(
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
        and records. Records must not mix in the model: no statistics over the batch. The first
        micro-batch of several records is run twice more beforehand to see that they do not; what
        happens to them before the first trainable layer cannot be seen.
        """
        if not self._known_apart and (weights_B is None or len(weights_B) > 1):
            self._known_apart = _keeps_apart(self._layers, losses)
        with _capture(self._layers) as captured, torch.enable_grad():
            losses_B = losses()
            captured.complete = True
            calls, device = captured.calls, losses_B.device.type
            for call in calls:
                call.check_unchanged()
            _check_leaves(losses_B, {id(x) for x in (*captured.beginnings, *self._parameters)})
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
                name: RULES[type(self._layers[name])](self._layers[name], *_joined(pairs))
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


def _set_trainable(layer: nn.Module, trainable: bool) -> None:
    for parameter in trained_parameters(layer).values():
        parameter.requires_grad_(trainable)


def _check_gradients_on(name: str) -> None:
    if not torch.is_grad_enabled():
        raise ValueError(
            f"Expected {name!r} to be called with gradients on, but something turned them off; "
            "detach what it returns, and checkpoint with use_reentrant=False."
        )


def _merge(name: str, layer: LoRALinear) -> None:
    layer.merged = layer.mergeable()
    if not layer.merged:
        raise ValueError(
            f"Expected {name!r} to be three plain float32 Linears without hooks, as it was; make "
            "new sums for the changed model."
        )


@contextmanager
def _capture(layers: dict[str, nn.Module]) -> Iterator[_Captured]:
    """Keep the input and the output of every call of the layers.

    Inside its layer's call a parameter is a constant, outside it is not: a gradient of it is one of
    a use that no layer has seen. A LoRALinear computes with its merged weight.
    """
    captured, handles = _Captured(), list[RemovableHandle]()

    def keeper(name: str) -> Callable[..., Tensor]:
        def keep(
            layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
        ) -> Tensor:
            _set_trainable(layer, True)
            _check_gradients_on(name)
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

    def checker(name: str) -> Callable[..., None]:
        return lambda *_: _check_gradients_on(name)

    def freeze(layer: nn.Module, _: tuple[Tensor, ...]) -> None:
        _set_trainable(layer, False)

    try:
        for name, layer in layers.items():
            _set_trainable(layer, True)
            if isinstance(layer, LoRALinear):
                _merge(name, layer)
                for part in (layer.down, layer.up):  # called by the layer, or past it
                    handles.append(part.register_forward_pre_hook(checker(name)))
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


def _keeps_apart(layers: dict[str, nn.Module], losses: Callable[[], Tensor]) -> bool:
    """Whether the first and the last record's loss were each seen to move that record's rows alone.

    False where that cannot be told: of one record, or of a gradient that is zero or not finite. A
    model that mixes records behind its first trainable layer is refused, and so is one in which
    another dimension comes first.
    """
    return all(_moves_own_rows(layers, losses, record) for record in (0, -1))


def _moves_own_rows(
    layers: dict[str, nn.Module], losses: Callable[[], Tensor], record: int
) -> bool:
    with _capture(layers) as captured, torch.enable_grad():
        losses_B = losses()
        captured.complete = True
        B = len(losses_B)
        if B < 2 or not captured.beginnings:
            return False
        for call in captured.calls:
            call.check_unchanged()
        with torch.autocast(losses_B.device.type, enabled=False):
            torch.autograd.grad(losses_B[record], captured.beginnings, allow_unused=True)
    told = False
    for call in captured.calls:
        if call.gradient is None or not len(call.input) == len(call.gradient) == B:
            continue  # one that is used is refused by its shape
        own = call.gradient[record]
        told = told or bool(own.any() and own.isfinite().all())
        others = call.gradient.nan_to_num(0.0, 0.0, 0.0)  # 0 * inf of a bad record is no path
        others[record] = 0
        if others.any():
            raise ValueError(
                f"Expected a record's loss to depend on that record's row of {call.name!r} alone, "
                "but it depends on others too; put the batch dimension first and use no statistics "
                "over it."
            )
    return told


def _check_leaves(losses_B: Tensor, known: set[int]) -> None:
    """Refuse a loss that depends on a tensor with gradients that no layer holds or has returned.

    A layer behind it would begin nowhere, and stay untrained without a word.
    """
    waiting, seen = [losses_B.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise ValueError(
                "Expected the loss to depend on the model's trainable parameters alone, but it "
                f"depends on a tensor of shape {tuple(leaf.shape)} that requires a gradient; "
                "detach it."
            )
        waiting += [following for following, _ in node.next_functions]


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
