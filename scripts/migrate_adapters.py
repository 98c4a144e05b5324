"""Once: turn whole private releases into adapters of their public base, the same to the last bit.

    python scripts/migrate_adapters.py faces/public faces/eps-1 faces/eps-3 ...

Each weight that LoRA trained is its base's plus a matrix of rank 16, rounded to bfloat16. What is
sought is a pair of float16 that rounds to the stored weights in as many entries as possible; the
others become corrections. Weights, card and the digest that the release goes by stay what they are.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
from torch import Tensor

from dpwg.method.transformer import WaveletGPT
from dpwg.modules import checkpoint_root
from dpwg.release.adapters import corrections, merged_weight
from dpwg.release.folder import (
    Release,
    base_folder,
    describe,
    find_checkpoint,
    load_public,
    load_release,
    save_release,
)
from dpwg.training.private import LORA_LAYERS

RANK = 16
ROUNDS, SWEEPS = 90, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="the public checkpoint that all were trained from")
    parser.add_argument("names", nargs="+", help="checkpoints that become adapters")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names:
        migrate(name, options.base)


def migrate(name: str, base_name: str) -> None:
    """Replace a whole release by an adapter, and assert that it loads as the same."""
    release, base, folder = load_release(name), load_public(base_name), find_checkpoint(name)
    if base_folder(folder) is not None:
        raise SystemExit(f"{name} is an adapter already")
    card, before = (folder / "privacy_card.json").read_bytes(), describe(name)["bytes"]
    adapter, share = fitted(base.model, release.model)
    save_release(
        folder,
        dataclasses.replace(release, adapter=adapter),
        tokenizer_folder=checkpoint_root() / "tokenizer",
        base_folder=find_checkpoint(base_name),
    )
    check_same(load_release(name), release)
    assert (folder / "privacy_card.json").read_bytes() == card
    after = describe(name)["bytes"]
    print(f"{name}: {before:,} -> {after:,} bytes, {share:.2%} of entries corrected", flush=True)


def check_same(found: Release, expected: Release) -> None:
    """Assert that two releases are one: weights, card, and the digest they go by."""
    own, other = found.model.state_dict(), expected.model.state_dict()
    assert own.keys() == other.keys()
    for name, tensor in own.items():
        assert torch.equal(tensor.view(torch.int32), other[name].view(torch.int32)), name
    assert found.card == expected.card
    assert found.weights_sha256 == expected.weights_sha256
    assert found.text_encoder == expected.text_encoder


def fitted(base: WaveletGPT, model: WaveletGPT) -> tuple[dict[str, Tensor], float]:
    """The adapter from one model to another, and the share of its entries that are corrected."""
    before, after = base.state_dict(), model.state_dict()
    adapter: dict[str, Tensor] = {}
    entries, wrong = 0, 0
    for name, weight_OI in after.items():
        layer, _, own = name.rpartition(".")
        if own != "weight" or layer.rpartition(".")[2] not in LORA_LAYERS:
            assert torch.equal(weight_OI, before[name]), f"{name} was trained, but not by LoRA"
            continue
        wanted_OI = weight_OI.bfloat16()
        down_RI, up_OR = pair(before[name].double(), wanted_OI)
        merged_OI = merged_weight(before[name], down_RI, up_OR)
        adapter |= {f"{layer}.down": down_RI, f"{layer}.up": up_OR}
        for part, tensor in corrections(merged_OI, wanted_OI).items():
            adapter[f"{layer}.{part}"] = tensor
        entries += wanted_OI.numel()
        wrong += int((merged_OI != wanted_OI).sum())
    return adapter, wrong / entries


def pair(base_OI: Tensor, wanted_OI: Tensor) -> tuple[Tensor, Tensor]:
    """A pair of float16, down (rank, in) and up (out, rank), that with the base rounds to most of
    the wanted weights.
    """
    low_OI, high_OI = interval(wanted_OI)
    middle_OI, half_OI = (low_OI + high_OI) / 2 - base_OI, (high_OI - low_OI) / 2
    weight_OI = half_OI**-2
    weight_OI = weight_OI.clamp(max=1e6 * weight_OI.median())
    up_OR, down_RI = balanced(middle_OI)
    for _ in range(8):
        up_OR = least_squares(down_RI, weight_OI, middle_OI)
        down_RI = least_squares(up_OR.T, weight_OI.T, middle_OI.T).T
    # What is outside of its interval pulls fully, what is inside holds on, ever less.
    margin_OI = 0.4 * half_OI  # to be well inside, where rounding to float16 moves fewer out
    low, high = low_OI - base_OI + margin_OI, high_OI - base_OI - margin_OI
    for step in range(ROUNDS):
        hold = max(0.3 * 0.94**step, 0.006)
        up_OR = pulled(up_OR, down_RI, weight_OI, low, high, hold)
        down_RI = pulled(down_RI.T, up_OR.T, weight_OI.T, low.T, high.T, hold).T
    up_OR, down_RI = (part.half() for part in balanced(up_OR @ down_RI))
    low, high = low_OI - base_OI, high_OI - base_OI
    for _ in range(SWEEPS):
        down_RI = nudged(down_RI.T, up_OR.T, low.T, high.T).T
        up_OR = nudged(up_OR, down_RI, low, high)
    return down_RI.contiguous(), up_OR.contiguous()


def interval(rounded_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Between which numbers all are that round to these of bfloat16: half way to the next ones."""
    magnitude = rounded_OI.view(torch.int16) & 0x7FFF
    size, larger, smaller = (
        bits.view(torch.bfloat16).double()
        for bits in (magnitude, magnitude + 1, (magnitude - 1).clamp(min=0))
    )
    far, near = (size + larger) / 2, (size + smaller) / 2
    near = torch.where(magnitude == 0, -far, near)
    negative = rounded_OI.view(torch.int16) < 0
    return torch.where(negative, -far, near), torch.where(negative, -near, far)


def balanced(matrix_OI: Tensor) -> tuple[Tensor, Tensor]:
    """The best factors of that rank, (out, rank) and (rank, in), of the same scales."""
    left, values, right = torch.linalg.svd(matrix_OI, full_matrices=False)
    roots_R = values[:RANK].sqrt()
    return left[:, :RANK] * roots_R, roots_R[:, None] * right[:RANK]


def least_squares(down_RI: Tensor, weight_OI: Tensor, wanted_OI: Tensor) -> Tensor:
    """The factor (out, rank) that with the other one is nearest to a matrix, entries weighted."""
    squares = (down_RI[:, None] * down_RI).flatten(0, 1)
    normal_ORR = (weight_OI @ squares.T).unflatten(1, (RANK, RANK))
    ridge = 1e-12 * normal_ORR.diagonal(dim1=1, dim2=2).mean(1)
    normal_ORR = normal_ORR + ridge[:, None, None] * torch.eye(RANK, dtype=ridge.dtype)
    return torch.linalg.solve(normal_ORR, (weight_OI * wanted_OI) @ down_RI.T)


def pulled(
    up_OR: Tensor, down_RI: Tensor, weight_OI: Tensor, low: Tensor, high: Tensor, hold: float
) -> Tensor:
    """The factor (out, rank) after a step towards where the product is between low and high."""
    product_OI = up_OR @ down_RI
    wanted_OI = product_OI.clamp(low, high)
    outside = wanted_OI != product_OI
    return least_squares(down_RI, weight_OI * torch.where(outside, 1.0, hold), wanted_OI)


def nudged(up_OR: Tensor, down_RI: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The factor of float16 with entries moved to a neighbouring number where that puts more of
    the product between low and high.
    """
    up_OR, down_RI = up_OR.contiguous().clone(), down_RI.double()
    product_OI = up_OR.double() @ down_RI
    outside_O = ((product_OI < low) | (product_OI > high)).sum(1)
    for own in range(RANK):
        for step in (1, -1):
            bits_O = up_OR[:, own].contiguous().view(torch.int16)
            moved_O = (bits_O + step).view(torch.float16)
            change_O = moved_O.double() - up_OR[:, own].double()
            trial_OI = product_OI + change_O[:, None] * down_RI[own]
            found_O = ((trial_OI < low) | (trial_OI > high)).sum(1)
            better = found_O < outside_O
            up_OR[better, own] = moved_O[better]
            product_OI[better] = trial_OI[better]
            outside_O = torch.where(better, found_O, outside_O)
    return up_OR


if __name__ == "__main__":
    main()
