"""Clipped sums against a loop over single records, and the bound on what one record can do."""

from __future__ import annotations

import copy

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


def test_zero_begins_again(make_model, make_inputs) -> None:
    model, inputs = make_model(), make_inputs(3)
    clipped = ClippedSums(model, max_grad_norm=1.0)
    clipped.add(lambda: inputs.losses(model))
    clipped.zero()
    assert norm_of(clipped.sums) == 0


def test_every_parameter_of_a_bfloat16_worker_stays_near_the_loop(model, make_inputs) -> None:
    losses_of, room = gpt_losses(make_inputs(8)), 1 - 2 * BFLOAT16_ERROR
    worker = copy.deepcopy(model).bfloat16()
    for bound in (0.5, 2.0):
        _, expected = one_by_one(losses_of, worker, 8, bound * room, torch.bfloat16)
        _, sums = clip(worker, losses_of, 8, bound)
        assert_same_sums(sums, expected, 2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e6, 1e14])
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


@given(st.integers(0, 2**20), st.sampled_from([1e-3, 1.0, 1e3, 1e6]))
@settings(max_examples=20)
def test_random_and_huge_records_contribute_at_most_the_bound(seed: int, size: float) -> None:
    torch.manual_seed(seed)
    x_BTC = torch.randn(4, int(torch.randint(1, 12, ())), 6) * size
    layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.LayerNorm(5))
    for dtype in (torch.float32, torch.bfloat16):
        model = copy.deepcopy(layers).to(dtype)
        for record in torch.eye(4).bool():
            _, own = clip(
                model,
                lambda m, _: (m(x_BTC.to(m[0].weight.dtype)) ** 3).sum((1, 2)),
                4,
                0.1,
                record,
            )
            assert norm_of(own) <= 0.1 * ONE_RECORD


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("nearness", [2**-7, 1e-3, 1e-4])
@pytest.mark.parametrize(("length", "width"), [(2, 16), (16, 256)])
def test_positions_that_nearly_cancel_contribute_at_most_the_bound(
    dtype, nearness: float, length: int, width: int
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width, bias=False)).to(dtype)
    for _ in range(10):
        x_BTC = torch.randn(1, 1, width).expand(1, length, width).to(dtype)
        pull_BTC = torch.randn(1, 1, width).repeat(1, length, 1) * 1e4
        pull_BTC[:, ::2] *= -(1 + nearness)
        pull_BTC = pull_BTC.to(dtype).float()
        _, own = clip(
            model, lambda m, _, x=x_BTC, g=pull_BTC: (m(x).float() * g).sum((1, 2)), 1, 1.0
        )
        assert norm_of(own) <= ONE_RECORD


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("nearness", [2**-7, 1e-3, 1e-4])
def test_repeated_ids_that_nearly_cancel_contribute_at_most_the_bound(dtype, nearness) -> None:
    torch.manual_seed(0)
    model, ids_BT = nn.Sequential(nn.Embedding(3, 64)).to(dtype), torch.ones(1, 16).long()
    for _ in range(10):
        pull_BTC = torch.randn(1, 1, 64).repeat(1, 16, 1) * 1e4
        pull_BTC[:, ::2] *= -(1 + nearness)
        pull_BTC = pull_BTC.to(dtype).float()
        _, own = clip(model, lambda m, _, g=pull_BTC: (m(ids_BT).float() * g).sum((1, 2)), 1, 1.0)
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
    _, without = clip(model, gpt_losses(make_inputs(5)), 5, 0.5, torch.arange(5) != 2)
    assert batch.refused == 1
    assert batch.norms_B.isfinite().tolist() == [True, True, False, True, True]
    assert_same_sums(sums, without)


def test_a_padding_row_without_finite_gradient_is_not_counted(make_model, make_inputs) -> None:
    inputs = make_inputs(3)
    inputs.states_BLD[2] = torch.nan
    batch, sums = clip(make_model(), gpt_losses(inputs), 3, 0.5, torch.tensor([True, True, False]))
    assert batch.refused == 0
    assert all(total.isfinite().all() for total in sums.values())


@pytest.mark.parametrize("size", [2.0**70, 2.0**100])
def test_a_gradient_too_large_for_its_square_is_refused_or_bounded(size: float) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    x_BC = torch.ones(2, 4)
    scale_B = torch.tensor([1.0, size])
    batch, sums = clip(model, lambda m, _: m(x_BC).sum(1) * scale_B, 2, 0.1)
    _, first = clip(
        model, lambda m, _: m(x_BC).sum(1) * scale_B, 2, 0.1, torch.tensor([True, False])
    )
    assert norm_of(minus(sums, first)) <= 0.1 * ONE_RECORD
    assert batch.refused == int(not batch.norms_B[1].isfinite())


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_layer_in_another_dtype_is_refused_by_name(dtype) -> None:
    model, x_BC = nn.ModuleDict({"it": nn.Linear(3, 2)}).to(dtype), torch.randn(4, 3).to(dtype)
    with pytest.raises(ValueError, match="'it' in float32 or bfloat16"):
        ClippedSums(model, max_grad_norm=1.0).add(lambda: model["it"](x_BC).float().sum(1))


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_a_bound_that_is_not_positive_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="max_grad_norm"):
        ClippedSums(nn.Linear(2, 2), max_grad_norm=bound)


@pytest.mark.parametrize("layer", ["positions", "linear"])
def test_a_layer_whose_first_dimension_is_not_the_record_is_refused(layer: str) -> None:
    model = nn.ModuleDict({"positions": nn.Embedding(3, 2), "linear": nn.Linear(2, 2)})
    x_BTC = torch.randn(4, 3, 2)

    def losses() -> Tensor:
        if layer == "positions":
            return (model["linear"](x_BTC) + model["positions"](torch.arange(3))).sum((1, 2))
        return model["linear"](x_BTC.transpose(0, 1)).sum((0, 2))

    with pytest.raises(ValueError, match=f"dimension 0 of '{layer}' to be the 4 records"):
        ClippedSums(model, max_grad_norm=1.0).add(losses)


def test_a_layer_used_twice_in_one_pass_follows_the_loop() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"ids": nn.Embedding(5, 6), "norm": nn.LayerNorm(6), "linear": nn.Linear(6, 6)}
    )
    ids_BT = torch.randint(5, (4, 3))

    def losses_of(model: nn.Module, part: slice) -> Tensor:
        x_BTC = model["ids"](ids_BT[part]) + model["ids"](ids_BT[part].flip(1)) * 0.3
        for _ in range(3):
            x_BTC = x_BTC + model["linear"](model["norm"](x_BTC)).tanh()
        return x_BTC.square().sum((1, 2))

    norms_B, expected = one_by_one(losses_of, model, 4, 2.0)
    batch, sums = clip(model, losses_of, 4, 2.0)
    torch.testing.assert_close(batch.norms_B.double(), norms_B, rtol=1e-5, atol=0)
    assert_same_sums(sums, expected)


def test_sums_carry_the_names_of_the_parameters(make_model) -> None:
    for model in (make_model(), nn.Linear(2, 2)):
        names = {name for name, _ in model.named_parameters()}
        assert ClippedSums(model, max_grad_norm=1.0).sums.keys() == names


def test_a_large_constant_gradient_stays_within_the_bound():
    """Naive float32 sums of a million equal squares would lose 5e-4 of the norm."""
    model = nn.Linear(1024, 1024, bias=False)
    clipped = ClippedSums(model, max_grad_norm=0.1)
    x_BTI = torch.ones(1, 600, 1024)
    clipped.add(lambda: model(x_BTI).sum((1, 2)))
    assert 0.099 < clipped.sums["weight"].double().norm() <= 0.1


def test_a_matrix_of_a_pair_called_without_gradients_follows_the_loop() -> None:
    torch.manual_seed(0)
    x_BC = torch.randn(4, 3)
    model = nn.ModuleDict({"it": LoRALinear(nn.Linear(3, 3), 3)})
    nn.init.normal_(model["it"].up.weight)

    def losses_of(model: nn.Module, part: slice) -> Tensor:
        with torch.no_grad():
            hidden_BC = model["it"].down(x_BC[part].to(model["it"].down.weight.dtype))
        return model["it"](hidden_BC).square().sum(1)

    norms_B, expected = one_by_one(losses_of, model, 4, 0.1)
    batch, sums = clip(model, losses_of, 4, 0.1)
    torch.testing.assert_close(batch.norms_B.double(), norms_B, rtol=1e-5, atol=0)
    assert_same_sums(sums, expected)


def test_what_a_model_does_to_outputs_in_place_follows_the_loop() -> None:
    torch.manual_seed(0)
    x_BC = torch.randn(4, 3)
    layers = nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 3), nn.ReLU(inplace=True)
    model = nn.Sequential(*layers, nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 2))

    def losses_of(model: nn.Module, part: slice) -> Tensor:
        return model(x_BC[part].to(model[0].weight.dtype)).mul_(3).square().sum(1)

    norms_B, expected = one_by_one(losses_of, model, 4, 0.1)
    batch, sums = clip(model, losses_of, 4, 0.1)
    torch.testing.assert_close(batch.norms_B.double(), norms_B, rtol=1e-5, atol=0)
    assert_same_sums(sums, expected)


def test_an_input_that_is_changed_after_its_layer_saw_it_is_refused() -> None:
    model, x_BC = nn.ModuleDict({"it": nn.Linear(3, 3), "then": nn.Linear(3, 3)}), torch.ones(4, 3)

    def losses() -> Tensor:
        hidden_BC = model["it"](x_BC)
        out_BC = model["then"](hidden_BC)
        return (out_BC + hidden_BC.mul_(2)).sum(1)

    with pytest.raises(ValueError, match="'then' to stay as it was"):
        ClippedSums(model, max_grad_norm=1.0).add(losses)


@pytest.mark.parametrize(
    "real_B",
    [
        torch.tensor([5.0, 1.0, 1.0]),
        torch.tensor([1.0, 0.0, 1.0]),
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
