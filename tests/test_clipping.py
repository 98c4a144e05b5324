"""Clipped sums against a loop over single records, and the bound on what one record can do."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from torch import Tensor, nn

from dpwg.lora import add_lora
from dpwg.model import WaveletGPT
from dpwg.privacy.clipping import ClippedBatch, ClippedSums
from dpwg.training.finetune import LORA_LAYERS

Sums = dict[str, Tensor]
ONE_RECORD = 1 + 1e-5  # float32 rounding of a norm


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


def one_by_one(
    losses_of: Callable[[nn.Module, slice], Tensor], model: nn.Module, records: int, bound: float
) -> tuple[Tensor, Sums]:
    """Norms and clipped sums by a backward pass a record, in float64."""
    model = copy.deepcopy(model).double()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p) for name, p in trained.items()}
    norms = []
    for i in range(records):
        gradients = torch.autograd.grad(
            losses_of(model, slice(i, i + 1)).sum(), list(trained.values()), allow_unused=True
        )
        norm = torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt()
        norms.append(norm)
        for name, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient * (bound / norm).clamp(max=1)
    return torch.stack(norms), sums


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
        assert difference.norm().item() <= tolerance * size, name


def gpt_losses(inputs) -> Callable[[nn.Module, slice], Tensor]:
    def losses(model: nn.Module, part: slice) -> Tensor:
        own = inputs[part]
        states_BLD = own.states_BLD.to(model.norm.weight.dtype)
        return model.negative_log_likelihood(states_BLD, own.mask_BL, own.codes)

    return losses


def clip(
    model: nn.Module,
    losses_of: Callable[[nn.Module, slice], Tensor],
    records: int,
    bound: float,
    weights_B: Tensor | None = None,
) -> tuple[ClippedBatch, Sums]:
    model = copy.deepcopy(model)
    clipped = ClippedSums(model, max_grad_norm=bound)
    return clipped.add(lambda: losses_of(model, slice(0, records)), weights_B), clipped.sums


@pytest.fixture(params=["full", "lora"])
def model(request, make_model) -> WaveletGPT:
    model = make_model()
    if request.param == "lora":
        add_lora(model, 3, LORA_LAYERS)
        for name, parameter in model.named_parameters():
            if name.endswith("up.weight"):
                nn.init.normal_(parameter, std=0.1)
    return model


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
    make_model, make_inputs, size: int, seed: int
) -> None:
    model, inputs = make_model(), make_inputs(7, seed)
    _, whole = clip(model, gpt_losses(inputs), 7, 0.3)
    clipped = ClippedSums(model, max_grad_norm=0.3)
    for part_B in torch.arange(7).split(size):
        weights_B = (torch.arange(size) < len(part_B)).float()
        padded = inputs[torch.cat((part_B, part_B[:1].expand(size - len(part_B))))]
        clipped.add(lambda padded=padded: padded.losses(model), weights_B)
    assert_same_sums(clipped.sums, whole)


def test_zero_begins_again(make_model, make_inputs) -> None:
    model, inputs = make_model(), make_inputs(3)
    clipped = ClippedSums(model, max_grad_norm=1.0)
    clipped.add(lambda: inputs.losses(model))
    clipped.zero()
    assert norm_of(clipped.sums) == 0


def test_a_bfloat16_worker_stays_near_the_loop(model, make_inputs) -> None:
    losses_of = gpt_losses(make_inputs(8))
    worker = copy.deepcopy(model).bfloat16()
    norms_B, _ = one_by_one(losses_of, worker, 8, 1.0)
    bound = norms_B.median().item()
    _, expected = one_by_one(losses_of, worker, 8, bound)
    batch, sums = clip(worker, losses_of, 8, bound)
    torch.testing.assert_close(batch.norms_B.double(), norms_B, rtol=2e-2, atol=0)
    assert norm_of(minus(sums, expected)) <= 2e-2 * norm_of(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e6, 1e14])
def test_one_record_moves_the_sum_by_at_most_the_bound(
    make_model, make_inputs, dtype, size
) -> None:
    model, inputs, bound = make_model().to(dtype), make_inputs(6), 0.05

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


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_record_without_finite_gradient_contributes_zero(make_model, make_inputs, bad, dtype):
    model, inputs = make_model().to(dtype), make_inputs(5)
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


def partially_frozen() -> nn.Module:
    model = nn.ModuleDict({"partly": nn.Linear(3, 3)})
    model["partly"].bias.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ModuleDict({"picture": nn.Conv2d(3, 3, 1)}), "'picture'.*Conv2d"),
        (WithParameter(), "gain.*'the model'.*WithParameter"),
        (Tied(), "'logits' shares a parameter with 'embedding'"),
        (partially_frozen(), "'partly'"),
        (nn.ModuleDict({"ids": nn.Embedding(4, 3, padding_idx=0)}), "padding_idx.*'ids'"),
        (nn.ModuleDict({"ids": nn.Embedding(4, 3, max_norm=1.0)}), "max_norm.*'ids'"),
        (nn.ModuleDict({"mix": nn.BatchNorm1d(3)}), "'mix'.*BatchNorm1d"),
        (nn.ModuleDict({"mix": nn.MultiheadAttention(4, 2)}), "'mix'.*MultiheadAttention"),
        (nn.Linear(2, 2).requires_grad_(False), "trainable parameters, found none"),
    ],
)
def test_unsupported_layers_are_refused_by_name(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClippedSums(model, max_grad_norm=1.0)


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


class Losses(nn.Module):
    """WaveletGPT with its losses as output, the shape that Opacus takes."""

    def __init__(self, model: WaveletGPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model.negative_log_likelihood(inputs[0], inputs[1], list(inputs[2:]))


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_norms_and_sums_agree_with_the_per_sample_gradients_of_opacus(model, make_inputs) -> None:
    inputs, bound = make_inputs(6), 0.4
    batch, sums = clip(model, gpt_losses(inputs), 6, bound)
    sampled = GradSampleModule(Losses(copy.deepcopy(model)), loss_reduction="sum")
    sampled(inputs.states_BLD, inputs.mask_BL, *inputs.codes).sum().backward()
    gradients = {
        name.removeprefix("_module.model."): p.grad_sample.double()
        for name, p in sampled.named_parameters()
        if p.requires_grad
    }
    squares = [g.flatten(1).square().sum(1) for g in gradients.values()]
    norms_B = torch.stack(squares).sum(0).sqrt()
    scale_B = (bound / norms_B).clamp(max=1)
    torch.testing.assert_close(batch.norms_B.double(), norms_B, rtol=1e-5, atol=0)
    expected = {name: torch.tensordot(scale_B, g, dims=1) for name, g in gradients.items()}
    assert_same_sums(sums, expected)
