"""The slow way to a clipped sum, one record at a time, and the engine's, side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dpwg.privacy.clipping import ClippedBatch, ClippedSums

Sums = dict[str, Tensor]
LossesOf = Callable[[nn.Module, slice], Tensor]

ONE_RECORD = 1 + 1e-5  # float32 rounding of a norm


def one_by_one(
    losses_of: LossesOf,
    model: nn.Module,
    records: int,
    bound: float,
    dtype: torch.dtype = torch.float64,
    clip_by_B: Tensor | None = None,
) -> tuple[Tensor, Sums]:
    """Norms and clipped sums by a backward pass a record, computed in `dtype`.

    With `clip_by_B` the sums are clipped by these norms in place of the records' own.
    """
    model = copy.deepcopy(model).to(dtype)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in trained.items()}
    norms = []
    for i in range(records):
        gradients = torch.autograd.grad(
            losses_of(model, slice(i, i + 1)).sum(), list(trained.values()), allow_unused=True
        )
        used = {
            name: g.double() for name, g in zip(trained, gradients, strict=True) if g is not None
        }
        norm = torch.stack([g.square().sum() for g in used.values()]).sum().sqrt()
        norms.append(norm)
        by = norm if clip_by_B is None else clip_by_B[i].double()
        for name, gradient in used.items():
            sums[name] += gradient * (bound / by).clamp(max=1)
    return torch.stack(norms), sums


def clip(
    model: nn.Module,
    losses_of: LossesOf,
    records: int,
    bound: float,
    real_B: Tensor | None = None,
) -> tuple[ClippedBatch, Sums]:
    """The engine's answer for a micro-batch; the model stays as it was."""
    model = copy.deepcopy(model)
    clipped = ClippedSums(model, max_grad_norm=bound)
    return clipped.add(lambda: losses_of(model, slice(0, records)), real_B), clipped.sums


def gpt_losses(inputs) -> LossesOf:
    """WaveletGPT's losses of a part of some inputs, in the model's own dtype."""

    def losses(model: nn.Module, part: slice) -> Tensor:
        own = inputs[part]
        states_BLD = own.states_BLD.to(model.norm.weight.dtype)
        return model.negative_log_likelihood(states_BLD, own.mask_BL, own.codes)

    return losses


def norm_of(sums: Sums) -> float:
    return torch.stack([total.double().norm() for total in sums.values()]).norm().item()


def minus(a: Sums, b: Sums) -> Sums:
    return {name: a[name].double() - b[name].double() for name in a}


def assert_same_sums(found: Sums, expected: Sums, tolerance: float = 1e-5) -> None:
    """Every parameter to `tolerance` of its own norm, or of a hundredth of the whole."""
    assert found.keys() == expected.keys()
    whole = norm_of(expected)
    for name, difference in minus(found, expected).items():
        size = max(expected[name].norm().item(), 0.01 * whole)
        error = difference.norm().item() / size
        assert error <= tolerance, f"{name}: {error:.2g}"
