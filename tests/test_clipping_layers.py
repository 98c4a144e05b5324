"""Random models of every supported layer: the loop, Opacus, autocast and checkpointing agree."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager

import pytest
import torch
from gradients import (
    ONE_RECORD,
    LossesOf,
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
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpwg.method.transformer import WaveletGPT
from dpwg.privacy.clipping import _float32_products
from dpwg.privacy.lora import LoRALinear

IDS = 5


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


def autocast(enabled: bool = True) -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def under_autocast(losses_of: LossesOf) -> LossesOf:
    def losses(model: nn.Module, part: slice) -> Tensor:
        with autocast():
            return losses_of(model, part)

    return losses


ONE_POSITION = cases(dims=2, repeated=False)
WAYS = {
    "float32": (cases(), torch.float32, 1e-3),
    "float32, one position": (ONE_POSITION, torch.float32, 0),
    "bfloat16": (cases(), torch.bfloat16, 0.5),
    "bfloat16, one position": (ONE_POSITION, torch.bfloat16, 0),
    "autocast": (cases(), torch.float32, 0.5),
}


@pytest.mark.parametrize("way", WAYS)
def test_random_models_follow_the_loop(way: str) -> None:
    draw, dtype, cancelling = WAYS[way]
    exact = way.startswith("float32")
    tolerance = 1e-5 if exact else 2e-2

    @given(draw, st.floats(0.05, 50.0))
    @settings(max_examples=60 if exact else 20)
    def check(case, bound: float) -> None:
        model, x = case[0].to(dtype), case[1]
        losses_of = under_autocast(losses_on(x)) if way == "autocast" else losses_on(x)
        batch, sums = clip(model, losses_of, len(x), bound)
        norms_B, expected = one_by_one(losses_of, model, len(x), bound, dtype, batch.norms_B)
        assert_near(batch.norms_B, norms_B, tolerance, cancelling)
        assert norm_of(minus(sums, expected)) <= tolerance * norm_of(expected)
        if exact:
            assert_same_sums(sums, expected)

    check()


@pytest.mark.filterwarnings("ignore:Full backward hook")
@given(cases(bias=True), st.floats(0.1, 50.0))
@settings(max_examples=40)
def test_random_models_agree_with_opacus(case, bound: float) -> None:
    model, x = case
    sampled = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    sampled(x).sum().backward()
    gradients = {
        name.removeprefix("_module."): p.grad_sample.double()
        for name, p in sampled.named_parameters()
        if p.requires_grad
    }
    squares = [g.flatten(1).square().sum(1) for g in gradients.values()]
    batch, sums = clip(model, lambda m, _: m(x), len(x), bound)
    assert_near(batch.norms_B, torch.stack(squares).sum(0).sqrt(), 1e-5, cancelling=1e-3)
    scale_B = (bound / batch.norms_B.double()).clamp(max=1)
    expected = {name: torch.tensordot(scale_B, g, dims=1) for name, g in gradients.items()}
    assert_same_sums(sums, expected)


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


@pytest.mark.parametrize(
    ("flags", "name", "set_by_caller", "within"),
    [
        (torch.backends.mkldnn.matmul, "fp32_precision", "bf16", "ieee"),
        (torch.backends.cuda.matmul, "fp32_precision", "tf32", "ieee"),
        (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", True, False),
    ],
)
def test_products_are_float32_whatever_the_caller_set(
    flags, name: str, set_by_caller: object, within: object
) -> None:
    before = getattr(flags, name)
    setattr(flags, name, set_by_caller)
    try:
        with _float32_products(bfloat16_inputs=False):
            assert getattr(flags, name) == within
        assert getattr(flags, name) == set_by_caller
    finally:
        setattr(flags, name, before)


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
