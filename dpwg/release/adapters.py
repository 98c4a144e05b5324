"""Adapters: what private training added to a public model, merged into it when loaded.

An adapter is tensors by name. Each adapted Linear has its LoRA pair, `NAME.down` (rank, in) and
`NAME.up` (out, rank), in float16. The merged weight is base + up down, in bfloat16, as a whole
release keeps it. A model that was trained before adapters were kept has corrections beside that,
`NAME.skip` and `NAME.value`, so that it is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from dpwg.modules import SHARD_BYTES
from dpwg.privacy.lora import fold

STEP = 256
"""Corrections are no further apart than this, so that a byte holds what lies between."""


def save_adapter(folder: Path, adapter: Mapping[str, Tensor]) -> None:
    """Write an adapter as safetensors into a new folder, split into shards if it is large."""
    folder.mkdir(parents=True)
    save_torch_state_dict(
        dict(adapter),
        folder,
        filename_pattern="adapter{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )


@torch.no_grad()
def merge_adapter(model: nn.Module, adapter: Mapping[str, Tensor]) -> None:
    """Put an adapter's merged weights into a base model. Raises ValueError where one cannot be."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    for name in sorted({key.rpartition(".")[0] for key in adapter}):
        parts = {
            key.rpartition(".")[2]: tensor
            for key, tensor in adapter.items()
            if key.rpartition(".")[0] == name
        }
        if name not in layers or not _fits(layers[name].weight, parts):
            found = {part: (*tensor.shape,) for part, tensor in parts.items()}
            raise ValueError(
                f"Expected the adapter's {name} to be a pair for a Linear of the model, down "
                f"(rank, in) and up (out, rank), found {found}; get the release again."
            )
        weight = layers[name].weight
        merged_OI = merged_weight(weight, parts["down"], parts["up"])
        if "skip" in parts:
            merged_OI.view(-1)[_places(parts["skip"])] = parts["value"]
        weight.copy_(merged_OI)


def merged_weight(weight_OI: Tensor, down_RI: Tensor, up_OR: Tensor) -> Tensor:
    """The weight that a pair makes of its base's, bfloat16 (out, in)."""
    return fold(weight_OI, down_RI, up_OR).float().bfloat16()


def corrections(merged_OI: Tensor, wanted_OI: Tensor) -> dict[str, Tensor]:
    """What takes merged weights to others of bfloat16, bit by bit: `value` (N,), and `skip` (N,),
    uint8, how many entries in row-major order lie between one correction and the one before.

    Every `STEP`th entry is given too, whether it differs or not.
    """
    bits_N = [tensor.contiguous().view(torch.int16).flatten() for tensor in (merged_OI, wanted_OI)]
    given_N = bits_N[0] != bits_N[1]
    given_N[STEP - 1 :: STEP] = True
    place_N = given_N.nonzero().flatten()
    between_N = place_N.diff(prepend=torch.tensor([-1])) - 1
    return {"skip": between_N.to(torch.uint8), "value": wanted_OI.flatten()[place_N]}


def _places(skip_N: Tensor) -> Tensor:
    return (skip_N.long() + 1).cumsum(0) - 1


def _fits(weight_OI: Tensor, parts: Mapping[str, Tensor]) -> bool:
    """Whether these are a pair for the weight, and corrections, if any, of its entries."""
    if parts.keys() not in ({"down", "up"}, {"down", "up", "skip", "value"}):
        return False
    down_RI, up_OR = parts["down"], parts["up"]
    if down_RI.ndim != 2 or up_OR.shape != (len(weight_OI), len(down_RI)):
        return False
    if down_RI.shape[1] != weight_OI.shape[1]:
        return False
    if "skip" not in parts or not len(skip_N := parts["skip"]):
        return True
    return skip_N.shape == parts["value"].shape == (len(skip_N),) and (
        skip_N.dtype == torch.uint8 and int(_places(skip_N)[-1]) < weight_OI.numel()
    )
