"""Clipped sums against a loop over single records, and the bound on what one record can do."""

from __future__ import annotations

import copy
from types import MethodType

import pytest
import torch
from gradients import (
    ONE_RECORD,
    assert_same_sums,
    clip,
    gpt_losses,
    minus,
    norm_of,
    one_by_one,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from dpwg.privacy.clipping import ClippedSums
from dpwg.privacy.layer_gradients import BFLOAT16_ERROR
from dpwg.privacy.lora import LoRALinear


def test_norms_and_sums_of_waveletgpt_equal_a_loop_over_records(model, make_inputs) -> None:
    losses_of = gpt_losses(make_inputs(6))
    norms_B, _ = one_by_one(losses_of, model, 6, 1.0)
    for bound in (0.5 * norms_B.min().item(), norms_B.median().item(), 2 * norms_B.max().item()):
        _, expected = one_by_one(losses_of, model, 6, bound)
        batch, sums = clip(model, losses_of, 6, bound)
        torch.testing.assert_close(batch.norms_B.double(), norms_B, rtol=1e-5, atol=0)
        assert batch.refused == 0
        assert_same_sums(sums, expected)
        assert all(total.dtype == torch.float32 for total in sums.values())
        assert min(total.norm() for total in sums.values()) > 0


@given(st.integers(1, 8), st.integers(0, 3))
@settings(max_examples=10)
def test_any_split_into_padded_micro_batches_gives_the_same_sums(
    model, make_inputs, size: int, seed: int
) -> None:
    inputs, worker = make_inputs(7, seed), copy.deepcopy(model)
    _, whole = clip(model, gpt_losses(inputs), 7, 0.3)
    clipped = ClippedSums(worker, max_grad_norm=0.3)
    for part_B in torch.arange(7).split(size):
        real_B = torch.arange(size) < len(part_B)
        padded = inputs[torch.cat((part_B, part_B[:1].expand(size - len(part_B))))]
        clipped.add(lambda padded=padded: padded.losses(worker), real_B)
    assert_same_sums(clipped.sums, whole)
    clipped.zero()
    assert norm_of(clipped.sums) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_record_adds_the_same_wherever_it_stands_in_a_micro_batch(
    model, make_inputs, dtype
) -> None:
    """So that a record that is added or removed does not move those behind it."""
    worker, inputs = copy.deepcopy(model).to(dtype), make_inputs(6)
    added = []
    for place in range(6):
        order = [*range(1, place + 1), 0, *range(place + 1, 6)]
        batch, sums = clip(
            worker, gpt_losses(inputs[torch.tensor(order)]), 6, 0.3, torch.arange(6) == place
        )
        added.append((batch.norms_B[place], sums))
    for norm, sums in added[1:]:
        assert norm == pytest.approx(added[0][0].item(), rel=1e-6)
        assert_same_sums(sums, added[0][1], 1e-6)


def test_every_parameter_of_a_bfloat16_worker_stays_near_the_loop(model, make_inputs) -> None:
    losses_of, room = gpt_losses(make_inputs(8)), 1 - 2 * BFLOAT16_ERROR
    worker = copy.deepcopy(model).bfloat16()
    for bound in (0.5, 2.0):
        _, expected = one_by_one(losses_of, worker, 8, bound * room, torch.bfloat16)
        _, sums = clip(worker, losses_of, 8, bound)
        assert_same_sums(sums, expected, 2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e14])
def test_one_record_moves_the_sum_by_at_most_the_bound(model, make_inputs, dtype, size) -> None:
    model, inputs, bound = copy.deepcopy(model).to(dtype), make_inputs(6), 0.05

    def losses_of(model: nn.Module, part: slice) -> Tensor:
        size_B = torch.ones(6)
        size_B[3:] = size
        return gpt_losses(inputs)(model, part) * size_B

    alone_B = torch.eye(6).bool()
    _, every = clip(model, losses_of, 6, bound)
    for record in range(6):
        batch, own = clip(model, losses_of, 6, bound, alone_B[record])
        _, without = clip(model, losses_of, 6, bound, ~alone_B[record])
        assert batch.norms_B.min() > bound
        assert 0.98 * bound < norm_of(own) <= bound * ONE_RECORD
        assert norm_of(minus(every, without)) <= bound * ONE_RECORD


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("layer", "x_BTC"),
    [
        (nn.Linear(16, 16, bias=False), torch.zeros(1, 2, 16)),
        (nn.Linear(256, 256, bias=False), torch.zeros(1, 16, 256)),
        (nn.Embedding(3, 64), torch.ones(1, 16).long()),
    ],
    ids=["few positions", "many positions", "repeated ids"],
)
def test_positions_that_nearly_cancel_contribute_at_most_the_bound(dtype, layer, x_BTC) -> None:
    torch.manual_seed(0)
    model, features = nn.Sequential(copy.deepcopy(layer)).to(dtype), layer.weight.shape[1]
    for nearness in 10 * [2**-7, 1e-3, 1e-4]:
        if x_BTC.is_floating_point():
            x_BTC = torch.randn(1, 1, features).expand_as(x_BTC).to(dtype)
        pull_BTC = torch.randn(1, 1, features).repeat(1, x_BTC.shape[1], 1) * 1e4
        pull_BTC[:, ::2] *= -(1 + nearness)
        pull_BTC = pull_BTC.to(dtype).float()
        _, own = clip(
            model, lambda m, _, x=x_BTC, g=pull_BTC: (m(x).float() * g).sum((1, 2)), 1, 1.0
        )
        assert norm_of(own) <= ONE_RECORD


@given(
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.lists(
        st.sampled_from([0.0, 1e-38, 1e-3, -1.0, 1e6, 1e18, -1e25, 3e38, torch.inf, torch.nan]),
        min_size=4,
        max_size=4,
    ),
    st.integers(0, 3),
)
@settings(max_examples=15)
def test_no_record_moves_the_sum_by_more_than_the_bound_whatever_stands_beside_it(
    model, make_inputs, dtype, sizes: list[float], record: int
) -> None:
    worker, inputs = copy.deepcopy(model).to(dtype), make_inputs(4)

    def losses_of(model: nn.Module, part: slice) -> Tensor:
        return gpt_losses(inputs)(model, part) * torch.tensor(sizes)

    batch, every = clip(worker, losses_of, 4, 0.05)
    _, without = clip(worker, losses_of, 4, 0.05, torch.arange(4) != record)
    assert norm_of(minus(every, without)) <= 0.05 * ONE_RECORD
    assert batch.refused == int((~batch.norms_B.isfinite()).sum())
    certain = [not abs(size) < torch.inf for size in sizes]
    assert not batch.norms_B[torch.tensor(certain)].isfinite().any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_record_without_finite_gradient_contributes_zero(model, make_inputs, bad, dtype) -> None:
    model, inputs = copy.deepcopy(model).to(dtype), make_inputs(5)
    inputs.states_BLD[2, 0, 0] = bad
    batch, sums = clip(model, gpt_losses(inputs), 5, 0.5)
    padded, others = clip(model, gpt_losses(inputs), 5, 0.5, torch.arange(5) != 2)
    _, without = clip(model, gpt_losses(make_inputs(5)), 5, 0.5, torch.arange(5) != 2)
    assert (batch.refused, padded.refused) == (1, 0)
    assert batch.norms_B.isfinite().tolist() == [True, True, False, True, True]
    assert_same_sums(sums, without)
    assert_same_sums(others, without)


def test_an_infinite_gradient_of_a_finite_loss_contributes_zero() -> None:
    torch.manual_seed(0)
    model, x_BC = nn.Sequential(nn.Linear(3, 2, bias=False)), torch.randn(3, 3)
    x_BC[1] = 0

    def losses_of(model: nn.Module, part: slice) -> Tensor:
        return model(x_BC[part]).abs().sum(1).sqrt()

    batch, sums = clip(model, losses_of, 3, 0.1)
    _, without = clip(model, losses_of, 3, 0.1, torch.tensor([True, False, True]))
    assert batch.losses_B.isfinite().all()
    assert batch.refused == 1
    assert_same_sums(sums, without)


def test_a_large_constant_gradient_stays_within_the_bound() -> None:
    """Naive float32 sums of a million equal squares would lose 5e-4 of the norm."""
    model = nn.Linear(1024, 1024, bias=False)
    clipped = ClippedSums(model, max_grad_norm=0.1)
    x_BTI = torch.ones(1, 600, 1024)
    clipped.add(lambda: model(x_BTI).sum((1, 2)))
    assert 0.099 < clipped.sums["weight"].double().norm() <= 0.1


@pytest.mark.parametrize(
    "real_B",
    [
        torch.tensor([5.0, 1.0, 1.0]),
        torch.tensor([torch.nan, 1.0, 1.0]),
        torch.ones(1, dtype=torch.bool),
        torch.ones(3, 1, dtype=torch.bool),
    ],
)
def test_a_record_counts_once_or_not_at_all(real_B: Tensor) -> None:
    model, x_BC = nn.Linear(2, 2), torch.randn(3, 2)
    clipped = ClippedSums(model, max_grad_norm=1.0)
    with pytest.raises(ValueError, match="real_B"):
        clipped.add(lambda: model(x_BC).sum(1), real_B)
    with pytest.raises(ValueError, match="losses"):
        clipped.add(lambda: model(x_BC))
    assert norm_of(clipped.sums) == 0


def test_an_empty_micro_batch_adds_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    batch, sums = clip(model, lambda model, _: model(torch.zeros(0, 2)).sum(1), 0, 1.0)
    assert (len(batch.losses_B), len(batch.norms_B), batch.refused) == (0, 0, 0)
    assert norm_of(sums) == 0


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_a_bound_that_is_not_positive_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="max_grad_norm"):
        ClippedSums(nn.Linear(2, 2), max_grad_norm=bound)


# What models do with their layers: each follows the loop, or is refused by name


def used_twice(m: nn.ModuleDict, x_BTC: Tensor) -> Tensor:
    ids_BT = (x_BTC.detach().sum(2) > 0).long()
    x_BTC = x_BTC + m["ids"](ids_BT) + m["ids"](ids_BT.flip(1)) * 0.3
    for _ in range(3):
        x_BTC = x_BTC + m["linear"](m["norm"](x_BTC)).tanh()
    return x_BTC


def in_place(m: nn.ModuleDict, x_BTC: Tensor) -> Tensor:
    hidden_BC = m["linear"](x_BTC[:, 0]).relu_()
    return m["then"](m["norm"](hidden_BC).mul_(3).relu_()).mul_(3)[:, None]


def in_place_at_every_position(m: nn.ModuleDict, x_BTC: Tensor) -> Tensor:
    return m["then"](m["norm"](m["linear"](x_BTC).relu_()).mul_(3)).mul_(3)


def without_gradients(m: nn.ModuleDict, x_BTC: Tensor) -> Tensor:
    with torch.no_grad():
        hidden_BTC = m["pair"].down(x_BTC)
    return m["pair"](hidden_BTC)


def by_name(m: nn.ModuleDict, x_BTC: Tensor) -> Tensor:
    return m["then"](input=m["linear"](input=x_BTC).tanh())


def through_pair(m: nn.ModuleDict, x_BTC: Tensor) -> Tensor:
    return m["pair"](m["linear"](x_BTC))


class Squashed(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).tanh()


def louder(pair: LoRALinear, x_BTC: Tensor) -> Tensor:
    return pair.base(x_BTC) + 10 * pair.up(pair.down(x_BTC))


def hook(layer: nn.Module) -> object:
    return layer.register_forward_hook(lambda _, inputs, output: 2 * output)


def freeze_pair_alone(pair: LoRALinear) -> None:
    pair.requires_grad_(False).base.requires_grad_(True)


def parts() -> nn.ModuleDict:
    torch.manual_seed(0)
    made = {"linear": nn.Linear(3, 3), "then": nn.Linear(3, 3), "norm": nn.LayerNorm(3)}
    pair = LoRALinear(nn.Linear(3, 3), 3)
    nn.init.normal_(pair.up.weight)
    return nn.ModuleDict(made | {"ids": nn.Embedding(2, 3), "pair": pair})


@pytest.mark.parametrize(
    ("computed", "changed"),
    [
        (used_twice, None),
        (in_place, None),
        (in_place_at_every_position, None),
        (without_gradients, None),
        (by_name, lambda m: hook(m["linear"])),
        (through_pair, lambda m: hook(m["pair"].down)),
        (through_pair, lambda m: hook(m["pair"].base)),
        (through_pair, lambda m: setattr(m["pair"], "base", Squashed(3, 3).requires_grad_(False))),
        (through_pair, lambda m: m["pair"].base.requires_grad_(True)),
        (through_pair, lambda m: freeze_pair_alone(m["pair"])),
        (through_pair, lambda m: setattr(m["pair"], "forward", MethodType(louder, m["pair"]))),
    ],
)
def test_whatever_a_model_does_with_its_layers_follows_the_loop(computed, changed) -> None:
    model, x_BTC = parts(), torch.randn(4, 5, 3)
    if changed:
        changed(model)

    def losses_of(model: nn.Module, part: slice) -> Tensor:
        return computed(model, x_BTC[part].to(model["norm"].weight.dtype)).square().sum((1, 2))

    norms_B, expected = one_by_one(losses_of, model, 4, 2.0)
    batch, sums = clip(model, losses_of, 4, 2.0)
    torch.testing.assert_close(batch.norms_B.double(), norms_B, rtol=1e-5, atol=0)
    assert_same_sums(sums, expected)


def input_changed(m: nn.ModuleDict, x_BTC: Tensor) -> Tensor:
    hidden_BTC = m["linear"](x_BTC)
    return m["then"](hidden_BTC) + hidden_BTC.mul_(2)


REFUSED = {
    "positions first": (
        lambda m, x: m["linear"](x.transpose(0, 1)).transpose(0, 1),
        "dimension 0 of 'linear' to be the 4 records",
    ),
    "no records": (
        lambda m, x: x + m["ids"](torch.arange(5) % 2),
        "dimension 0 of 'ids'",
    ),
    "input changed": (input_changed, "'then' to stay as it was"),
    "tied by use": (
        lambda m, x: F.linear(x + m["ids"](torch.ones(4, 5).long()), m["ids"].weight),
        r"'ids\.weight' to be used by its own layer",
    ),
    "down alone": (
        lambda m, x: m["pair"].down(m["pair"](x)),
        r"'pair\.down\.weight' to be used by",
    ),
    "up alone": (lambda m, x: m["pair"].up(m["pair"](x)), r"'pair\.up\.weight' to be used by"),
}


@pytest.mark.parametrize(("computed", "message"), REFUSED.values(), ids=REFUSED)
def test_what_no_rule_sees_is_refused_by_name(computed, message) -> None:
    model, x_BTC = parts(), torch.randn(4, 5, 3)
    clipped = ClippedSums(model, max_grad_norm=1.0)
    with pytest.raises(ValueError, match=message):
        clipped.add(lambda: computed(model, x_BTC).square().sum((1, 2)))
    assert norm_of(clipped.sums) == 0
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_layer_in_another_dtype_is_refused_by_name(dtype) -> None:
    model, x_BC = nn.ModuleDict({"it": nn.Linear(3, 2)}).to(dtype), torch.randn(4, 3).to(dtype)
    with pytest.raises(ValueError, match="'it' in float32 or bfloat16"):
        ClippedSums(model, max_grad_norm=1.0).add(lambda: model["it"](x_BC).float().sum(1))


def test_a_pair_that_was_changed_after_the_sums_were_made_is_refused_by_name() -> None:
    model, x_BC = nn.ModuleDict({"it": LoRALinear(nn.Linear(3, 3), 2)}), torch.randn(4, 3)
    clipped = ClippedSums(model, max_grad_norm=1.0)
    handle = hook(model["it"].up)
    with pytest.raises(ValueError, match=r"'it'.*without hooks"):
        clipped.add(lambda: model["it"](x_BC).square().sum(1))
    assert norm_of(clipped.sums) == 0
    handle.remove()
    clipped.add(lambda: model["it"](x_BC).square().sum(1))
    assert norm_of(clipped.sums) > 0
    assert not model["it"].merged
