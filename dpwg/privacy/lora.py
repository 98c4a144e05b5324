"""Low-rank adaptation (arXiv 2106.09685) as plain Linear pairs, and back into plain weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoRALinear(nn.Module):
    """A frozen Linear plus up(down(x)); `up` starts at zero, so nothing changes at first.

    Where the pair is a constant, as it is in the private engine, one product with `merged_weight`
    takes the place of three.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.down.weight.requires_grad or self.up.weight.requires_grad):
            return F.linear(x, self.merged_weight(), self.base.bias)
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out

    def merged_weight(self) -> Tensor:
        """base + up down, (out, in): summed in float32, rounded once to the layer's dtype."""
        with torch.autocast(self.base.weight.device.type, enabled=False):
            base, up, down = (m.weight.float() for m in (self.base, self.up, self.down))
            return torch.addmm(base, up, down).to(self.base.weight.dtype)


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
def merge_lora(model: nn.Module) -> None:
    """Fold every pair into its base layer: the model is of plain layers again, trainable."""
    for module in list(model.modules()):
        for own, child in list(module.named_children()):
            if isinstance(child, LoRALinear):
                child.base.weight.copy_(child.merged_weight())
                setattr(module, own, child.base)
    model.requires_grad_(True)
