"""Adapters: what private training added to a public model, merged into it when loaded.

An adapter is tensors by name. Each adapted Linear has its LoRA pair, `NAME.down` (rank, in) and
`NAME.up` (out, rank), in float16. The merged weight is base + up down, in bfloat16, as a whole
release keeps it. A model that was trained before adapters were kept has corrections beside that,
so that it is the same to the last bit: `NAME.value`, bfloat16 (N,), are entries of the merged
weight in row-major order, and `NAME.skip`, uint8 (N,), how many lie between one and the one before.
What was trained without a pair is there as it is, by its own name, in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from dpwg.modules import SHARD_BYTES
from dpwg.privacy.lora import fold


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
    """Put an adapter's merged weights into a base model.

    What does not fit raises PyTorch's errors, or makes a model of another digest.
    """
    pairs = {key.rpartition(".")[0] for key in adapter if key.endswith((".down", ".up"))}
    for key, value in adapter.items():
        if key.rpartition(".")[0] not in pairs:
            model.get_parameter(key).copy_(value)
    for name in sorted(pairs):
        weight = model.get_submodule(name).get_parameter("weight")
        merged_OI = merged_weight(weight, adapter[f"{name}.down"], adapter[f"{name}.up"])
        if (skip_N := adapter.get(f"{name}.skip")) is not None:
            places_N = (skip_N.long() + 1).cumsum(0) - 1
            merged_OI.view(-1)[places_N] = adapter[f"{name}.value"]
        weight.copy_(merged_OI)


def merged_weight(weight_OI: Tensor, down_RI: Tensor, up_OR: Tensor) -> Tensor:
    """The weight that a pair makes of its base's, bfloat16 (out, in)."""
    return fold(weight_OI, down_RI, up_OR).float().bfloat16()
