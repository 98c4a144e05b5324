"""Clipped sums against a loop over single records, and the bound on what one record can do."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

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
from torch.nn.utils.parametrizations import weight_norm

from dpwg.privacy.clipping import ClippedSums
from dpwg.privacy.layer_gradients import BFLOAT16_ERROR
from dpwg.privacy.lora import LoRALinear


class Chain(nn.Module):
    """Embedded ids through random layers: a loss a record."""

    def __init__(self, layers: Sequence[nn.Module], width: int, ids: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ids, width)
        self.layers = nn.ModuleList(layers)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTC = self.embedding(ids_BT)
        for layer in self.layers:
            x_BTC = torch.tanh(layer(x_BTC)) + 0.1 * layer(x_BTC)
        return x_BTC.square().sum((1, 2)) + x_BTC.sum((1, 2))


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


@st.composite
def chains(draw: st.DrawFn) -> tuple[Chain, Tensor]:
    torch.manual_seed(draw(st.integers(0, 2**20)))
    widths = [draw(st.integers(4, 12)) for _ in range(draw(st.integers(2, 4)))]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        if draw(st.booleans()):
            layers.append(nn.LayerNorm(before, bias=draw(st.booleans())))
            nn.init.normal_(layers[-1].weight)
        layers.append(nn.Linear(before, after, bias=draw(st.booleans())))
    ids_BT = torch.randint(5, (draw(st.integers(1, 5)), draw(st.integers(1, 12))))
    return Chain(layers, widths[0]), ids_BT


@given(chains(), st.floats(0.05, 5.0))
@settings(max_examples=40)
def test_norms_and_sums_of_random_models_equal_a_loop_over_records(case, fraction) -> None:
    model, ids_BT = case

    def losses_of(model: nn.Module, part: slice) -> Tensor:
        return model(ids_BT[part])

    norms_B, _ = one_by_one(losses_of, model, len(ids_BT), 1.0)
    bound = fraction * norms_B.mean().item()
    _, expected = one_by_one(losses_of, model, len(ids_BT), bound)
    batch, sums = clip(model, losses_of, len(ids_BT), bound)
    torch.testing.assert_close(batch.norms_B.double(), norms_B, rtol=1e-5, atol=1e-6)
    assert_same_sums(sums, expected)


@pytest.mark.parametrize(("length", "width"), [(1, 8), (2, 8), (9, 4), (40, 3)])
def test_short_and_long_sequences_follow_the_loop(length: int, width: int) -> None:
    torch.manual_seed(0)
    model = Chain([nn.Linear(width, width), nn.Linear(width, 2 * width, bias=False)], width)
    ids_BT = torch.randint(5, (4, length))
    norms_B, expected = one_by_one(lambda m, part: m(ids_BT[part]), model, 4, 0.7)
    batch, sums = clip(model, lambda m, part: m(ids_BT[part]), 4, 0.7)
    torch.testing.assert_close(batch.norms_B.double(), norms_B, rtol=1e-5, atol=0)
    assert_same_sums(sums, expected)


@given(st.integers(1, 8), st.integers(0, 3))
@settings(max_examples=10)
def test_any_split_into_padded_micro_batches_gives_the_same_sums(
    model, make_inputs, size: int, seed: int
) -> None:
    inputs, worker = make_inputs(7, seed), copy.deepcopy(model)
    _, whole = clip(model, gpt_losses(inputs), 7, 0.3)
    clipped = ClippedSums(worker, max_grad_norm=0.3)
    for part_B in torch.arange(7).split(size):
        weights_B = (torch.arange(size) < len(part_B)).float()
        padded = inputs[torch.cat((part_B, part_B[:1].expand(size - len(part_B))))]
        clipped.add(lambda padded=padded: padded.losses(worker), weights_B)
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
            worker, gpt_losses(inputs[torch.tensor(order)]), 6, 0.3, torch.eye(6)[place]
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


def test_a_bfloat16_worker_stays_near_the_loop(model, make_inputs) -> None:
    losses_of = gpt_losses(make_inputs(8))
    worker = copy.deepcopy(model).bfloat16()
    for dtype in (torch.bfloat16, torch.float64):
        norms_B, _ = one_by_one(losses_of, worker, 8, 1.0, dtype)
        bound = norms_B.median().item()
        _, expected = one_by_one(losses_of, worker, 8, bound, dtype)
        batch, sums = clip(worker, losses_of, 8, bound)
        torch.testing.assert_close(batch.norms_B.double(), norms_B, rtol=2e-2, atol=0)
        assert norm_of(minus(sums, expected)) <= 2e-2 * norm_of(expected)


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

    alone_B = torch.eye(6)
    _, every = clip(model, losses_of, 6, bound)
    for record in range(6):
        batch, own = clip(model, losses_of, 6, bound, alone_B[record])
        _, without = clip(model, losses_of, 6, bound, 1 - alone_B[record])
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
        for record in torch.eye(4):
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
    batch, sums = clip(make_model(), gpt_losses(inputs), 3, 0.5, torch.tensor([1.0, 1.0, 0.0]))
    assert batch.refused == 0
    assert all(total.isfinite().all() for total in sums.values())


@pytest.mark.parametrize("size", [2.0**70, 2.0**100])
def test_a_gradient_too_large_for_its_square_is_refused_or_bounded(size: float) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    x_BC = torch.ones(2, 4)
    scale_B = torch.tensor([1.0, size])
    batch, sums = clip(model, lambda m, _: m(x_BC).sum(1) * scale_B, 2, 0.1)
    _, first = clip(model, lambda m, _: m(x_BC).sum(1) * scale_B, 2, 0.1, torch.tensor([1.0, 0.0]))
    assert norm_of(minus(sums, first)) <= 0.1 * ONE_RECORD
    assert batch.refused == int(not batch.norms_B[1].isfinite())


def test_an_infinite_gradient_of_a_finite_loss_contributes_zero() -> None:
    torch.manual_seed(0)
    model, x_BC = nn.Sequential(nn.Linear(3, 2, bias=False)), torch.randn(3, 3)
    x_BC[1] = 0

    def losses_of(model: nn.Module, part: slice) -> Tensor:
        return model(x_BC[part]).abs().sum(1).sqrt()

    batch, sums = clip(model, losses_of, 3, 0.1)
    _, without = clip(model, losses_of, 3, 0.1, torch.tensor([1.0, 0.0, 1.0]))
    assert batch.losses_B.isfinite().all()
    assert batch.refused == 1
    assert_same_sums(sums, without)


class WithParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.gain = nn.Parameter(torch.ones(3))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.logits = nn.Linear(3, 4, bias=False)
        self.logits.weight = self.embedding.weight


class TiedByUse(nn.Module):
    """One matrix for the ids and for the logits, tied where no layer sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.linear = nn.Linear(3, 3)

    def forward(self, ids_BT: Tensor) -> Tensor:
        return F.linear(self.linear(self.embedding(ids_BT)), self.embedding.weight)


def frozen(layer: nn.Module) -> nn.Module:
    """The layer, frozen, beside one that is not."""
    return nn.ModuleDict({"it": layer.requires_grad_(False), "linear": nn.Linear(3, 3)})


def partially_frozen() -> nn.Module:
    model = nn.ModuleDict({"partly": nn.Linear(3, 3)})
    model["partly"].bias.requires_grad_(False)
    return model


def reparametrized_pair() -> nn.Module:
    pair = LoRALinear(nn.Linear(3, 3), 2)
    weight_norm(pair.down)
    return pair


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ModuleDict({"picture": nn.Conv2d(3, 3, 1)}), "'picture'.*Conv2d"),
        (WithParameter(), "gain.*'the model'.*WithParameter"),
        (Tied(), "'logits' shares a parameter with 'embedding'"),
        (partially_frozen(), "'partly'"),
        (nn.ModuleDict({"ids": nn.Embedding(4, 3, padding_idx=0)}), "padding_idx.*'ids'"),
        (nn.ModuleDict({"ids": nn.Embedding(4, 3, max_norm=1.0)}), "max_norm.*'ids'"),
        (nn.ModuleDict({"ids": nn.Embedding(4, 3, scale_grad_by_freq=True)}), "freq.*'ids'"),
        (nn.ModuleDict({"mix": nn.BatchNorm1d(3)}), "'mix'.*BatchNorm1d"),
        (nn.ModuleDict({"mix": nn.MultiheadAttention(4, 2)}), "'mix'.*MultiheadAttention"),
        (nn.ModuleDict({"it": nn.Conv1d(3, 3, 1)}), "'it'.*Conv1d"),
        (nn.ModuleDict({"it": nn.ConvTranspose2d(3, 3, 1)}), "'it'.*ConvTranspose2d"),
        (nn.ModuleDict({"it": nn.GroupNorm(1, 3)}), "'it'.*GroupNorm"),
        (nn.ModuleDict({"it": nn.RMSNorm(3)}), "'it'.*RMSNorm"),
        (nn.ModuleDict({"it": nn.InstanceNorm1d(3, affine=True)}), "'it'.*InstanceNorm1d"),
        (nn.ModuleDict({"it": nn.RNN(3, 3)}), "'it'.*RNN"),
        (nn.ModuleDict({"it": nn.LSTM(3, 3)}), "'it'.*LSTM"),
        (nn.ModuleDict({"it": nn.GRUCell(3, 3)}), "'it'.*GRUCell"),
        (nn.ModuleDict({"it": nn.Bilinear(3, 3, 3)}), "'it'.*Bilinear"),
        (nn.ModuleDict({"it": nn.EmbeddingBag(3, 3)}), "'it'.*EmbeddingBag"),
        (nn.ModuleDict({"it": nn.PReLU()}), "'it'.*PReLU"),
        (nn.ModuleDict({"it": nn.LazyLinear(3)}), "'it'.*LazyLinear"),
        (nn.ModuleDict({"it": nn.utils.spectral_norm(nn.Linear(3, 3))}), "'it'.*weight_orig"),
        (nn.ModuleDict({"it": weight_norm(nn.Linear(3, 3))}), "'it'.*ParametrizedLinear"),
        (reparametrized_pair(), "'down.parametrizations.*ParametrizationList"),
        (frozen(nn.BatchNorm2d(3)), "'it'.*BatchNorm2d"),
        (frozen(nn.BatchNorm1d(3, affine=False, track_running_stats=False)), "'it'.*BatchNorm1d"),
        (frozen(nn.InstanceNorm1d(3, track_running_stats=True)), "'it'.*InstanceNorm1d"),
        (nn.Linear(2, 2).requires_grad_(False), "trainable parameters, found none"),
    ],
)
def test_unsupported_layers_are_refused_by_name(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClippedSums(model, max_grad_norm=1.0)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3), nn.LSTM(3, 3), nn.Linear(3, 3), nn.Dropout()]
)
def test_frozen_layers_that_keep_records_apart_are_let_through(layer: nn.Module) -> None:
    assert ClippedSums(frozen(layer), max_grad_norm=1.0).sums.keys() == {
        "linear.weight",
        "linear.bias",
    }


def test_a_parameter_used_outside_its_layer_is_refused_by_name() -> None:
    model, ids_BT = TiedByUse(), torch.randint(4, (3, 2))
    clipped = ClippedSums(model, max_grad_norm=1.0)
    with pytest.raises(ValueError, match=r"'embedding\.weight' to be used by its own layer"):
        clipped.add(lambda: model(ids_BT).square().sum((1, 2)))
    assert norm_of(clipped.sums) == 0
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("matrix", ["down", "up"])
def test_a_matrix_of_a_pair_used_outside_its_layer_is_refused_by_name(matrix: str) -> None:
    pair, x_BC = LoRALinear(nn.Linear(3, 3), 3), torch.randn(4, 3)
    clipped = ClippedSums(pair, max_grad_norm=1.0)
    with pytest.raises(ValueError, match=rf"'{matrix}\.weight' to be used by its own layer"):
        clipped.add(lambda: pair.get_submodule(matrix)(pair(x_BC)).square().sum(1))
    assert norm_of(clipped.sums) == 0


class Squashed(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).tanh()


def doubled(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return 2 * output


def changed_pairs() -> dict[str, LoRALinear]:
    """Pairs that compute something else than their weights alone tell."""
    torch.manual_seed(0)
    made = {
        name: LoRALinear(nn.Linear(3, 3), 2)
        for name in ("hook down", "hook base", "base", "trained base", "frozen pair", "forward")
    }
    for pair in made.values():
        nn.init.normal_(pair.up.weight)
    made["hook down"].down.register_forward_hook(doubled)
    made["hook base"].base.register_forward_hook(doubled)
    made["base"].base = Squashed(3, 3).requires_grad_(False)
    made["trained base"].base.requires_grad_(True)
    made["frozen pair"].requires_grad_(False).base.requires_grad_(True)
    own = made["forward"]
    own.forward = lambda x: own.base(x) + 10 * own.up(own.down(x))  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize("name", changed_pairs())
def test_a_pair_that_computes_something_else_follows_autograd(name: str) -> None:
    pair, x_BTC = changed_pairs()[name], torch.randn(4, 5, 3)
    model = nn.Sequential(nn.Linear(3, 3), pair)
    expected = torch.autograd.grad(
        model(x_BTC).square().sum(), [p for p in model.parameters() if p.requires_grad]
    )
    names = [own for own, p in model.named_parameters() if p.requires_grad]
    clipped = ClippedSums(model, max_grad_norm=math.inf)
    clipped.add(lambda: model(x_BTC).square().sum((1, 2)))
    assert clipped.sums.keys() == set(names)
    for own, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(clipped.sums[own], gradient, rtol=1e-4, atol=1e-4)


def test_a_pair_of_another_kind_of_layer_is_refused_by_name() -> None:
    pair = LoRALinear(nn.Linear(3, 3), 2)
    pair.down = Squashed(3, 2, bias=False)
    with pytest.raises(ValueError, match=r"'down'.*Squashed"):
        ClippedSums(pair, max_grad_norm=1.0)


def test_a_pair_that_was_changed_after_the_sums_were_made_is_refused_by_name() -> None:
    model, x_BC = nn.ModuleDict({"it": LoRALinear(nn.Linear(3, 3), 2)}), torch.randn(4, 3)
    clipped = ClippedSums(model, max_grad_norm=1.0)
    handle = model["it"].up.register_forward_hook(doubled)
    with pytest.raises(ValueError, match=r"'it'.*without hooks"):
        clipped.add(lambda: model["it"](x_BC).square().sum(1))
    assert norm_of(clipped.sums) == 0
    assert not any(p.requires_grad for p in model.parameters())
    handle.remove()
    clipped.add(lambda: model["it"](input=x_BC).square().sum(1))
    assert norm_of(clipped.sums) > 0
    assert not model["it"].merged


@pytest.mark.parametrize("matrix", ["down", "up"])
def test_a_matrix_of_a_pair_called_without_gradients_is_refused_by_name(matrix: str) -> None:
    model, x_BC = nn.ModuleDict({"it": LoRALinear(nn.Linear(3, 3), 3)}), torch.randn(4, 3)

    def losses() -> Tensor:
        with torch.no_grad():
            hidden_BC = model["it"].get_submodule(matrix)(x_BC)
        return model["it"](hidden_BC).square().sum(1)

    clipped = ClippedSums(model, max_grad_norm=1.0)
    with pytest.raises(ValueError, match=r"'it' to be called with gradients on"):
        clipped.add(losses)
    assert norm_of(clipped.sums) == 0


def test_a_pair_that_shares_a_matrix_is_refused() -> None:
    model = nn.ModuleDict({own: LoRALinear(nn.Linear(3, 3), 2) for own in ("one", "other")})
    model["other"].down = model["one"].down
    with pytest.raises(ValueError, match="'other' shares a parameter with 'one'"):
        ClippedSums(model, max_grad_norm=1.0)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_before_records_are_refused_by_name_where_there_are_as_many(dtype) -> None:
    model, x_BTC = nn.ModuleDict({"it": nn.Linear(2, 2)}).to(dtype), torch.randn(4, 4, 2)
    with pytest.raises(ValueError, match="row of 'it' alone"):
        ClippedSums(model, max_grad_norm=1.0).add(
            lambda: model["it"](x_BTC.to(dtype).transpose(0, 1)).float().sum((0, 2))
        )


@pytest.mark.parametrize("alone_first", [False, True])
def test_a_model_that_mixes_records_is_refused_by_name(alone_first: bool) -> None:
    model, x_BC = nn.ModuleDict({"it": nn.Linear(2, 2)}), torch.randn(4, 2)
    clipped = ClippedSums(model, max_grad_norm=1.0)

    def losses(x_BC: Tensor) -> Tensor:
        y_BC = model["it"](x_BC)
        return (y_BC - y_BC.mean(0)).square().sum(1) + y_BC.sum(1)

    if alone_first:  # which cannot tell
        clipped.add(lambda: losses(x_BC[:1]))
        clipped.zero()
    with pytest.raises(ValueError, match="row of 'it' alone"):
        clipped.add(lambda: losses(x_BC))
    assert norm_of(clipped.sums) == 0


@pytest.mark.parametrize("mix", ["earlier", "later", "next"])
def test_records_that_see_some_others_only_are_refused_by_name(mix: str) -> None:
    model = nn.ModuleDict({"it": nn.Linear(2, 2), "then": nn.Linear(2, 2)})
    mixes = {
        "earlier": lambda x_BC: x_BC.cumsum(0),
        "later": lambda x_BC: x_BC.flip(0).cumsum(0).flip(0),
        "next": lambda x_BC: torch.cat([x_BC[:1], x_BC[1:] + x_BC[:-1]]),
    }
    x_BC = torch.randn(4, 2)
    with pytest.raises(ValueError, match="row of 'it' alone"):
        ClippedSums(model, max_grad_norm=1.0).add(
            lambda: model["then"](mixes[mix](model["it"](x_BC)).sin()).sum(1)
        )


def test_records_that_tell_nothing_leave_the_question_open() -> None:
    model = nn.ModuleDict({"it": nn.Linear(2, 2)})
    clipped = ClippedSums(model, max_grad_norm=1.0)

    def losses(weight_B: Tensor) -> Tensor:
        y_BC = model["it"](torch.ones(3, 2))
        return weight_B * (y_BC.sum() + y_BC.sum(1))

    clipped.add(lambda: losses(torch.zeros(3)))
    with pytest.raises(ValueError, match="row of 'it' alone"):
        clipped.add(lambda: losses(torch.ones(3)))


def test_single_records_are_computed_once() -> None:
    model, calls = nn.ModuleDict({"it": nn.Linear(2, 2)}), []
    clipped = ClippedSums(model, max_grad_norm=1.0)

    def losses() -> Tensor:
        calls.append(1)
        return model["it"](torch.ones(1, 2)).sum(1)

    for _ in range(3):
        clipped.add(losses, torch.ones(1))
    assert len(calls) == 3


def test_a_record_that_is_not_finite_does_not_look_like_mixing() -> None:
    model, x_BC = nn.ModuleDict({"it": nn.Linear(2, 2)}), torch.tensor([[1.0, 2.0], [1.0, 0.0]])
    clipped = ClippedSums(model, max_grad_norm=1.0)
    added = clipped.add(lambda: model["it"](x_BC).sum(1) / x_BC[:, 1])
    assert added.refused == 1
    assert norm_of(clipped.sums) > 0


@pytest.mark.parametrize("through", ["itself", "a layer that is not trained"])
def test_a_tensor_with_a_gradient_of_its_own_is_refused(through: str) -> None:
    model = nn.ModuleDict({"it": nn.Linear(2, 2), "other": nn.Linear(2, 2).requires_grad_(False)})
    x_BC = torch.randn(4, 2, requires_grad=True)
    clipped = ClippedSums(model, max_grad_norm=1.0)

    def losses() -> Tensor:
        inner_BC = x_BC if through == "itself" else model["other"](x_BC)
        return model["it"](inner_BC).sum(1)

    with pytest.raises(ValueError, match=r"tensor of shape \(4, 2\) that requires a gradient"):
        clipped.add(losses)


def test_a_layer_over_several_dimensions_is_refused_or_follows_the_loop() -> None:
    model = nn.Sequential(nn.LayerNorm((3, 4)))
    x_BTC, pull_BTC = torch.randn(5, 3, 4), torch.randn(5, 3, 4)

    def losses_of(model: nn.Module, part: slice) -> Tensor:
        dtype = model[0].weight.dtype
        return (model(x_BTC[part].to(dtype)) * pull_BTC[part].to(dtype)).sum((1, 2))

    _, expected = one_by_one(losses_of, model, 5, 0.1)
    try:
        _, sums = clip(model, losses_of, 5, 0.1)
    except ValueError:
        return
    assert_same_sums(sums, expected)


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


def test_stopped_and_in_place_layers_follow_the_loop_or_are_refused() -> None:
    torch.manual_seed(0)
    x_BC = torch.randn(4, 3)
    stopped = nn.ModuleDict({"stopped": nn.Linear(3, 3), "linear": nn.Linear(3, 3)})
    in_place = nn.Sequential(
        nn.Linear(3, 3), nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)
    )

    def stopped_losses(model: nn.Module, part: slice) -> Tensor:
        with torch.no_grad():
            hidden_BC = model["stopped"](x_BC[part].to(model["linear"].weight.dtype))
        return model["linear"](hidden_BC).square().sum(1)

    def in_place_losses(model: nn.Module, part: slice) -> Tensor:
        return model(x_BC[part].to(model[0].weight.dtype)).square().sum(1)

    for model, losses_of in ((stopped, stopped_losses), (in_place, in_place_losses)):
        _, expected = one_by_one(losses_of, model, 4, 0.1)
        try:
            _, sums = clip(model, losses_of, 4, 0.1)
        except (ValueError, RuntimeError):
            continue
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
