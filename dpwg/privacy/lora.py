"""Low-rank adaptation (arXiv 2106.09685) as plain Linear pairs, and back into plain weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoRALinear(nn.Module):
    """A frozen Linear plus up(down(x)); `up` starts at zero, so nothing changes at first."""

    PAIR = ("down.weight", "up.weight")
    """The names of what is trained."""
    merged = False
    """Whether one product with `merged_weight` takes the place of three, but under autocast, which
    would round off what the pair adds. The answer is the same; the private engine sets it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, input: Tensor) -> Tensor:
        if self.merged and not torch.is_autocast_enabled(input.device.type):
            return F.linear(input, self.merged_weight(), self.base.bias)
        out: Tensor = self.base(input) + self.up(self.down(input))
        return out

    def merged_weight(self) -> Tensor:
        """base + up down, (out, in)."""
        return torch.addmm(self.base.weight, self.up.weight, self.down.weight)

    def mergeable(self) -> bool:
        """Whether the merged weight tells all: three plain float32 Linears and nothing on them."""
        layers = (self.base, self.down, self.up)
        return (
            "forward" not in vars(self)
            and all(type(layer) is nn.Linear and not _hooks(layer) for layer in layers)
            and all(layer.weight.dtype == torch.float32 for layer in layers)
            and self.down.bias is None
            and self.up.bias is None
        )


def _hooks(layer: nn.Module) -> bool:
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return any(getattr(layer, kind) for kind in kinds) or "forward" in vars(layer)


def add_lora(model: nn.Module, rank: int, names: tuple[str, ...]) -> None:
    """Freeze the model and give every Linear whose own name is in `names` a trainable pair."""
    model.requires_grad_(False)
    targets = [
        (module, own, child)
        for module in model.modules()
        for own, child in module.named_children()
        if own in names and isinstance(child, nn.Linear)
    ]
    if (missing := set(names) - {own for _, own, _ in targets}) or not names:
        raise ValueError(
            f"Expected Linear layers named {sorted(missing)} in the model, found none."
        )
    for module, own, child in targets:
        setattr(module, own, LoRALinear(child, rank).to(child.weight.device, child.weight.dtype))


@torch.no_grad()
def round_lora(model: nn.Module) -> dict[str, Tensor]:
    """Round every pair to float16, as adapters are kept, and return them on the CPU.

    They go by their layer's name: "NAME.down" (rank, in) and "NAME.up" (out, rank).
    """
    pairs = {}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            for part, layer in (("down", module.down), ("up", module.up)):
                rounded = layer.weight.to(torch.float16)
                layer.weight.copy_(rounded)
                pairs[f"{name}.{part}"] = rounded.cpu()
    return pairs


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Fold every pair into its base layer: the model is of plain layers again, trainable."""
    for module in list(model.modules()):
        for own, child in list(module.named_children()):
            if isinstance(child, LoRALinear):
                weight = child.base.weight
                weight.copy_(fold(weight, child.down.weight, child.up.weight))
                child.base.weight = weight  # where it is computed from others, these take it in
                setattr(module, own, child.base)
    model.requires_grad_(True)


def fold(weight_OI: Tensor, down_RI: Tensor, up_OR: Tensor) -> Tensor:
    """weight + up down, float64 (out, in) on the CPU.

    Products of float16 are exact in float64, and their sums but for its last bits: training and
    loading, on whatever device, fold the same weights.
    """
    weight_OI, down_RI, up_OR = (part.cpu().double() for part in (weight_OI, down_RI, up_OR))
    return torch.addmm(weight_OI, up_OR, down_RI)
