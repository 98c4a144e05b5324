"""Random models of every supported layer: the loop, Opacus, autocast and checkpointing agree."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from gradients import (
    ONE_RECORD,
    LossesOf,
    Sums,
    assert_same_sums,
    clip,
    gpt_losses,
    minus,
    norm_of,
    one_by_one,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpwg.method.transformer import WaveletGPT
from dpwg.privacy.clipping import _float32_products
from dpwg.privacy.lora import LoRALinear

IDS = 5
SumsBy = Callable[[Tensor], Sums]  # of each record's scale


class Residual(nn.Module):
    """x + inner(x), `times` over with the same inner layers."""

    def __init__(self, inner: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.inner = inner
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = x + self.inner(x).tanh()
        return x


class Scored(nn.Module):
    """A loss a record: what the layers make of it, against a fixed random direction."""

    def __init__(self, layers: nn.Module, pull: Tensor) -> None:
        super().__init__()
        self.layers = layers
        self.pull = pull

    def forward(self, x: Tensor) -> Tensor:
        return (self.layers(x).float().sin() * self.pull).flatten(1).sum(1)


@st.composite
def blocks(draw: st.DrawFn, width: int, *, bias: bool, repeated: bool, depth: int = 2) -> nn.Module:
    """A module of that width in and out; without `bias` it may still have some."""

    def own_bias() -> bool:
        return bias or draw(st.booleans())

    def inner() -> nn.Module:
        return draw(blocks(width, bias=bias, repeated=repeated, depth=depth - 1))

    kinds = ["linear", "norm", "mlp", "pair", *(["residual", "nested"] if depth else [])]
    kind = draw(st.sampled_from([*kinds, "repeated"] if depth and repeated else kinds))
    if kind == "linear":
        return nn.Linear(width, width, bias=own_bias())
    if kind == "norm":
        norm = nn.LayerNorm(width, bias=own_bias())
        nn.init.normal_(norm.weight)
        return norm
    if kind == "mlp":
        hidden = draw(st.integers(2, 24))
        return nn.Sequential(
            nn.Linear(width, hidden, bias=own_bias()),
            nn.GELU(),
            nn.Linear(hidden, width, bias=own_bias()),
        )
    if kind == "pair":
        pair = LoRALinear(nn.Linear(width, width, bias=own_bias()), draw(st.integers(1, width)))
        nn.init.normal_(pair.up.weight)
        part = draw(st.sampled_from(["pair", "up alone", "all"]))
        pair.down.requires_grad_(part != "up alone")
        pair.base.requires_grad_(part == "all")
        return pair
    if kind == "nested":
        return nn.Sequential(inner(), nn.Sequential(inner(), nn.Tanh()))
    return Residual(inner(), times=draw(st.integers(2, 3)) if kind == "repeated" else 1)


@st.composite
def cases(
    draw: st.DrawFn, *, dims: int = 4, bias: bool = False, repeated: bool = True
) -> tuple[Scored, Tensor]:
    """A model that begins with an Embedding or a Linear, and its input of two to `dims` axes."""
    torch.manual_seed(draw(st.integers(0, 2**20)))
    width, records = draw(st.integers(4, 12)), draw(st.integers(1, 5))
    shape = [records, *(draw(st.integers(1, 6)) for _ in range(draw(st.integers(0, dims - 2))))]
    if draw(st.booleans()):
        x, first = torch.randint(IDS, shape), nn.Embedding(IDS, width)
    else:
        features = draw(st.integers(1, 9))
        x = torch.randn(*shape, features)
        first = nn.Linear(features, width, bias=bias or draw(st.booleans()))
    layers = nn.Sequential(first, draw(blocks(width, bias=bias, repeated=repeated)))
    layers.append(nn.Linear(width, outputs := draw(st.integers(1, 9))))
    return Scored(layers, torch.randn(*shape[1:], outputs)), x


def losses_on(x: Tensor) -> LossesOf:
    """The model's losses of a part of x, in the model's own dtype."""

    def losses(model: nn.Module, part: slice) -> Tensor:
        own = x[part]
        return model(own.to(model.layers[-1].weight.dtype) if own.is_floating_point() else own)

    return losses


def assert_near(found_B: Tensor, expected_B: Tensor, tolerance: float, cancelling: float) -> None:
    """Norms to a tolerance, or greater by `cancelling`: what rounding could hide is added."""
    excess_B = found_B.double() / expected_B.double() - 1
    assert excess_B.min() >= -tolerance
    assert excess_B.max() <= max(tolerance, cancelling)


ONE_POSITION = cases(dims=2, repeated=False)


@pytest.mark.parametrize(
    ("draw", "cancelling"), [(cases(), 1e-3), (ONE_POSITION, 0)], ids=["any", "one position"]
)
def test_random_models_follow_the_loop_in_float32(draw, cancelling: float) -> None:
    @given(draw, st.floats(0.05, 50.0))
    @settings(max_examples=60)
    def check(case, bound: float) -> None:
        model, x = case
        batch, sums = clip(model, losses_on(x), len(x), bound)
        norms_B, expected = one_by_one(
            losses_on(x), model, len(x), bound, torch.float32, batch.norms_B
        )
        assert_near(batch.norms_B, norms_B, 1e-5, cancelling)
        assert_same_sums(sums, expected)

    check()


@pytest.mark.parametrize(
    ("draw", "cancelling"), [(cases(), 0.5), (ONE_POSITION, 0)], ids=["any", "one position"]
)
def test_random_models_follow_the_loop_in_bfloat16(draw, cancelling: float) -> None:
    @given(draw, st.floats(0.05, 50.0))
    @settings(max_examples=20)
    def check(case, bound: float) -> None:
        worker, x = case[0].to(torch.bfloat16), case[1]
        batch, sums = clip(worker, losses_on(x), len(x), bound)
        norms_B, expected = one_by_one(
            losses_on(x), worker, len(x), bound, torch.bfloat16, batch.norms_B
        )
        assert_near(batch.norms_B, norms_B, 2e-2, cancelling)
        assert norm_of(minus(sums, expected)) <= 2e-2 * norm_of(expected)

    check()


def opacus_hooks(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, SumsBy]:
    """Norms and clipped sums from Opacus' gradients a record."""
    sampled = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    sampled(*inputs).sum().backward()
    gradients = {
        name.removeprefix("_module."): p.grad_sample.double()
        for name, p in sampled.named_parameters()
        if p.requires_grad
    }
    squares = [g.flatten(1).square().sum(1) for g in gradients.values()]

    def sums(scale_B: Tensor) -> Sums:
        return {n: torch.tensordot(scale_B.double(), g, dims=1) for n, g in gradients.items()}

    return torch.stack(squares).sum(0).sqrt(), sums


def opacus_ghost(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, SumsBy]:
    """Norms from Opacus' ghost clipping, and sums by a second backward pass of scaled losses."""
    sampled = GradSampleModuleFastGradientClipping(
        copy.deepcopy(model), loss_reduction="sum", use_ghost_clipping=True
    )
    losses_B = sampled(*inputs)
    losses_B.sum().backward(retain_graph=True)

    def sums(scale_B: Tensor) -> Sums:
        sampled.disable_hooks()
        sampled.zero_grad()
        (losses_B * scale_B).sum().backward()
        return {
            name.removeprefix("_module."): p.grad.double()
            for name, p in sampled.named_parameters()
            if p.requires_grad
        }

    return sampled.get_norm_sample(), sums


OPACUS = {"hooks": opacus_hooks, "ghost": opacus_ghost}


def assert_agrees_with_opacus(
    way: str, model: nn.Module, inputs: tuple[Tensor, ...], bound: float, cancelling: float = 0.0
) -> None:
    norms_B, sums_by = OPACUS[way](model, inputs)
    batch, sums = clip(model, lambda m, _: m(*inputs), len(norms_B), bound)
    assert_near(batch.norms_B, norms_B, 1e-5, cancelling)
    assert_same_sums(sums, sums_by((bound / batch.norms_B).clamp(max=1)))


@pytest.mark.filterwarnings("ignore:Full backward hook")
@given(cases(bias=True), st.floats(0.1, 50.0))
@settings(max_examples=40)
def test_random_models_agree_with_the_hooks_of_opacus(case, bound: float) -> None:
    assert_agrees_with_opacus("hooks", case[0], case[1:], bound, cancelling=1e-3)


@pytest.mark.filterwarnings("ignore:Full backward hook")
@given(cases(dims=3, bias=True, repeated=False), st.floats(0.1, 50.0))
@settings(max_examples=40)
def test_random_models_agree_with_the_ghost_norms_of_opacus(case, bound: float) -> None:
    assert_agrees_with_opacus("ghost", case[0], case[1:], bound, cancelling=1e-3)


class Losses(nn.Module):
    """WaveletGPT with its losses as output, the shape that Opacus takes."""

    def __init__(self, model: WaveletGPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model.negative_log_likelihood(inputs[0], inputs[1], list(inputs[2:]))


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_waveletgpt_agrees_with_opacus(model, make_inputs) -> None:
    inputs, losses = make_inputs(6), Losses(copy.deepcopy(model))
    losses.model.places.register_forward_pre_hook(lambda _, ids: (ids[0].contiguous(),))
    assert_agrees_with_opacus(
        "hooks", losses, (inputs.states_BLD, inputs.mask_BL, *inputs.codes), bound=0.4
    )


def autocast(enabled: bool = True) -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def under_autocast(losses_of: LossesOf) -> LossesOf:
    def losses(model: nn.Module, part: slice) -> Tensor:
        with autocast():
            return losses_of(model, part)

    return losses


@pytest.mark.parametrize("around", [nullcontext, autocast])
def test_waveletgpt_under_autocast_follows_the_loop(model, make_inputs, around) -> None:
    losses_of = under_autocast(gpt_losses(make_inputs(8)))
    norms_B, expected = one_by_one(losses_of, model, 8, 0.5, torch.float32)
    with around():
        batch, sums = clip(model, losses_of, 8, 0.5)
    torch.testing.assert_close(batch.norms_B.double(), norms_B, rtol=2e-2, atol=0)
    assert norm_of(minus(sums, expected)) <= 2e-2 * norm_of(expected)
    assert all(total.dtype == torch.float32 for total in sums.values())


@given(cases(), st.floats(0.05, 50.0))
@settings(max_examples=20)
def test_random_models_under_autocast_follow_the_loop(case, bound: float) -> None:
    model, x = case
    losses_of = under_autocast(losses_on(x))
    batch, sums = clip(model, losses_of, len(x), bound)
    norms_B, expected = one_by_one(losses_of, model, len(x), bound, torch.float32, batch.norms_B)
    assert_near(batch.norms_B, norms_B, 2e-2, cancelling=0.5)
    assert norm_of(minus(sums, expected)) <= 2e-2 * norm_of(expected)


@pytest.mark.parametrize("computed", [True, False])
def test_autocast_around_the_engine_rounds_no_norm(computed: bool) -> None:
    """Positions that nearly cancel: a rounded norm would let in twice the bound."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256, bias=False))
    for nearness in (1e-2, 1e-3, 1e-4):
        x_BTC = torch.randn(1, 1, 256).expand(1, 16, 256)
        pull_BTC = torch.randn(1, 1, 256).repeat(1, 16, 1) * 1e4
        pull_BTC[:, ::2] *= -(1 + nearness)

        def losses_of(model: nn.Module, _: slice, x=x_BTC, pull=pull_BTC) -> Tensor:
            with autocast(computed):
                return (model(x).float() * pull).sum((1, 2))

        with autocast():
            _, own = clip(model, losses_of, 1, 1.0)
        assert norm_of(own) <= ONE_RECORD


@pytest.mark.parametrize("backend", [torch.backends.mkldnn, torch.backends.cuda])
def test_float32_is_multiplied_in_full_whatever_the_caller_set(backend) -> None:
    flags, low = backend.matmul, "bf16" if backend is torch.backends.mkldnn else "tf32"
    before = flags.fp32_precision
    flags.fp32_precision = low
    try:
        with _float32_products(bfloat16_inputs=False):
            assert flags.fp32_precision == "ieee"
        assert flags.fp32_precision == low
    finally:
        flags.fp32_precision = before


def test_partial_sums_of_bfloat16_stay_float32_on_a_gpu() -> None:
    flags = torch.backends.cuda.matmul
    before = flags.allow_bf16_reduced_precision_reduction
    flags.allow_bf16_reduced_precision_reduction = True
    try:
        with _float32_products(bfloat16_inputs=True):
            assert not flags.allow_bf16_reduced_precision_reduction
        assert flags.allow_bf16_reduced_precision_reduction
    finally:
        flags.allow_bf16_reduced_precision_reduction = before


class Checkpointed(nn.Module):
    """A block whose activations are computed again in the backward pass."""

    def __init__(self, block: nn.Module, *, use_reentrant: bool) -> None:
        super().__init__()
        self.block = block
        self.use_reentrant = use_reentrant

    def forward(self, *inputs: Tensor) -> Tensor:
        return checkpoint(self.block, *inputs, use_reentrant=self.use_reentrant)


def checkpointed(model: WaveletGPT, *, use_reentrant: bool) -> WaveletGPT:
    model = copy.deepcopy(model)
    model.blocks = nn.ModuleList(
        Checkpointed(block, use_reentrant=use_reentrant) for block in model.blocks
    )
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointed_blocks_give_the_same_sums(model, make_inputs, dtype) -> None:
    worker, losses_of = copy.deepcopy(model).to(dtype), gpt_losses(make_inputs(6))
    plain, expected = clip(worker, losses_of, 6, 0.3)
    batch, sums = clip(checkpointed(worker, use_reentrant=False), losses_of, 6, 0.3)
    sums = {name.replace(".block.", "."): total for name, total in sums.items()}
    torch.testing.assert_close(batch.norms_B, plain.norms_B, rtol=1e-6, atol=0)
    assert_same_sums(sums, expected, 1e-6)


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_reentrant_checkpointing_is_refused_by_name(model, make_inputs) -> None:
    """It runs blocks with gradients off, where no hook could tell their layers' shares."""
    with pytest.raises(ValueError, match=r"'blocks\.0\..*use_reentrant=False"):
        clip(checkpointed(model, use_reentrant=True), gpt_losses(make_inputs(3)), 3, 0.3)


def test_a_hook_on_a_layer_and_a_named_input_follow_the_loop() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"hooked": nn.Linear(3, 4), "named": nn.Linear(4, 2)})
    model["hooked"].register_forward_hook(lambda _, inputs, output: 2 * output)
    x_BTC = torch.randn(4, 5, 3)

    def losses_of(model: nn.Module, part: slice) -> Tensor:
        hidden_BTC = model["hooked"](x_BTC[part].to(model["named"].weight.dtype)).tanh()
        return model["named"](input=hidden_BTC).square().sum((1, 2))

    norms_B, expected = one_by_one(losses_of, model, 4, 0.5)
    batch, sums = clip(model, losses_of, 4, 0.5)
    torch.testing.assert_close(batch.norms_B.double(), norms_B, rtol=1e-5, atol=0)
    assert_same_sums(sums, expected)
