"""What the private engine refuses before a run: layers without a rule, and records that mix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dpwg.privacy.layer_gradients import RULES, trained_parameters
from dpwg.privacy.lora import LoRALinear

if TYPE_CHECKING:
    from dpwg.privacy.clipping import ClippedSums

ROWS, TRIED = 3, 8
"""A record is looked at among so many rows; so many records are tried until one tells."""
TOLERANCE = 0.02
"""Of a gradient: more than rounding moves it between the rows of a batch, even in bfloat16."""
_MIXED = (
    "Expected a record's gradient to be the same whatever records stand beside it, and wherever it "
    "stands, but it depends on that; put the batch dimension first, and use no statistics over it, "
    "not in the loss either."
)


def check_apart(sums: ClippedSums, losses_of: Callable[[Tensor], Tensor], *, records: int) -> None:
    """Raise ValueError for a model or a loss that mixes records; empties the sums.

    `losses_of` runs the model on the records of some indices, (B,), and returns their losses. For
    the first records, until one has a gradient: its loss must move its own row alone, and by the
    same whatever stands in the other rows. What is found shows in nothing but a refusal.
    """
    if losses_of(torch.zeros(ROWS, dtype=torch.int64)).requires_grad:
        raise ValueError(
            "Expected the loss to depend on the model's trainable parameters alone, but it depends "
            "on a tensor that requires a gradient of its own; detach it."
        )
    for record in range(min(records - 1, TRIED)):
        if _is_told_apart(sums, losses_of, record):
            break
    sums.zero()


def _is_told_apart(sums: ClippedSums, losses_of: Callable[[Tensor], Tensor], record: int) -> bool:
    """Whether a record has a finite gradient, which then is its own."""
    device = next(iter(sums.sums.values())).device

    def gradient(place: int, other: int, seed: int = 0) -> tuple[float, Tensor]:
        """The norm of the record's gradient, and the gradient clipped, among others."""
        own_B = torch.arange(ROWS) == place
        rows_B = torch.where(own_B, record, other)
        sums.zero()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            norms_B = sums.add(lambda: losses_of(rows_B) * own_B.to(device)).norms_B.cpu()
        if (norms_B[~own_B] > 0).any():
            raise ValueError(_MIXED)
        return norms_B[place].item(), torch.cat([t.flatten() for t in sums.sums.values()])

    norm, own_N = gradient(0, record + 1)

    def is_same(place: int, other: int, seed: int = 0) -> bool | None:
        """Whether the gradient is that one; None where a number is not finite."""
        found, found_N = gradient(place, other, seed)
        if not (math.isfinite(found) and math.isfinite(norm)):
            return None
        near = (found_N - own_N).norm() <= TOLERANCE * own_N.norm()
        return bool(near) and math.isclose(found, norm, rel_tol=TOLERANCE)

    alone, again = is_same(0, record), is_same(0, record + 1, seed=1)
    last = is_same(ROWS - 1, record + 1)
    if None in (alone, again, last):
        return False
    if not alone or (again and not last):  # dropout takes something else from another row
        raise ValueError(_MIXED)
    return norm > 0


def trainable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that hold trainable parameters, by name; anything unsupported is refused."""
    layers: dict[str, nn.Module] = {}
    owners: dict[int, str] = {}
    within_pairs: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) or getattr(module, "track_running_stats", False):
            raise ValueError(
                f"Expected {name or 'the model'!r} to keep no statistics over records, found "
                f"{type(module).__name__}; use LayerNorm."
            )
        if module in within_pairs:
            continue
        own = {n: p for n, p in module.named_parameters(recurse=False) if p.requires_grad}
        if _is_one_layer(module):
            own = trained_parameters(module)
            within_pairs.update(module.modules())
        elif not own:
            continue
        elif reason := _without_rule(module, own):
            raise ValueError(
                f"Expected a rule for the gradients of {name or 'the model'!r}: {reason} "
                f"({', '.join(sorted(own))}); freeze it, or build it from what has rules."
            )
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


def _is_one_layer(module: nn.Module) -> bool:
    """Whether this is a LoRALinear that has a rule of its own: its pair is trained and no more.

    Of any other LoRALinear the Linears are layers of their own. So they are in bfloat16, where a
    merged weight would round off what the pair adds.
    """
    return (
        type(module) is LoRALinear
        and module.mergeable()
        and {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        == set(LoRALinear.PAIR)
    )


def _without_rule(module: nn.Module, own: dict[str, nn.Parameter]) -> str:
    """Why a module's trainable parameters have no rule; empty where they have."""
    if type(module) not in RULES:
        return f"it is {type(module).__name__}, no Linear, LayerNorm or Embedding"
    if not own.keys() <= {"weight", "bias"}:
        return "it has other parameters than a weight and a bias"
    if len(own) < len(list(module.parameters(recurse=False))):
        return "some of its parameters are frozen"
    if isinstance(module, nn.Embedding) and (
        module.padding_idx is not None or module.max_norm is not None or module.scale_grad_by_freq
    ):
        return "it has padding_idx, max_norm or scale_grad_by_freq"
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
        return "it normalizes several dimensions"
    return ""
