"""What the private engine refuses before a run: layers without a rule, and records that mix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gradients import norm_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from dpwg.privacy.clipping import ClippedSums
from dpwg.privacy.lora import LoRALinear
from dpwg.privacy.preflight import check_apart


class WithParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.gain = nn.Parameter(torch.ones(3))


class Squashed(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).tanh()


def sharing(one: nn.Module, other: nn.Module, name: str) -> nn.Module:
    setattr(other, name, getattr(one, name))
    return nn.ModuleDict({"one": one, "other": other})


def pair(down: nn.Module | None = None) -> LoRALinear:
    made = LoRALinear(nn.Linear(3, 3), 2)
    made.down = down or made.down
    return made


def frozen(layer: nn.Module) -> nn.Module:
    """The layer, frozen, beside one that is not."""
    return nn.ModuleDict({"it": layer.requires_grad_(False), "linear": nn.Linear(3, 3)})


partly_frozen = nn.ModuleDict({"partly": nn.Linear(3, 3)})
partly_frozen["partly"].bias.requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ModuleDict({"picture": nn.Conv2d(3, 3, 1)}), "'picture'.*Conv2d"),
        (WithParameter(), "'the model'.*WithParameter.*gain"),
        (sharing(nn.Embedding(3, 3), nn.Linear(3, 3), "weight"), "'other' shares.*'one'"),
        (sharing(pair(), pair(), "down"), "'other' shares.*'one'"),
        (pair(Squashed(3, 2, bias=False)), "'down'.*Squashed"),
        (pair(weight_norm(nn.Linear(3, 2, bias=False))), "'down.parametrizations.*Parametriz"),
        (partly_frozen, "'partly'.*frozen"),
        (nn.ModuleDict({"ids": nn.Embedding(4, 3, padding_idx=0)}), "'ids'.*padding_idx"),
        (nn.ModuleDict({"ids": nn.Embedding(4, 3, max_norm=1.0)}), "'ids'.*max_norm"),
        (nn.ModuleDict({"ids": nn.Embedding(4, 3, scale_grad_by_freq=True)}), "'ids'.*freq"),
        (nn.ModuleDict({"mix": nn.BatchNorm1d(3)}), "'mix'.*BatchNorm1d"),
        (nn.ModuleDict({"mix": nn.MultiheadAttention(4, 2)}), "'mix'.*MultiheadAttention"),
        (nn.ModuleDict({"it": nn.RMSNorm(3)}), "'it'.*RMSNorm"),
        (nn.ModuleDict({"it": nn.EmbeddingBag(3, 3)}), "'it'.*EmbeddingBag"),
        (nn.ModuleDict({"it": nn.PReLU()}), "'it'.*PReLU"),
        (nn.ModuleDict({"it": nn.LazyLinear(3)}), "'it'.*LazyLinear"),
        (nn.ModuleDict({"it": nn.utils.spectral_norm(nn.Linear(3, 3))}), "'it'.*weight_orig"),
        (nn.ModuleDict({"it": weight_norm(nn.Linear(3, 3))}), "'it'.*ParametrizedLinear"),
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


# Records that mix


def two_layers(dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"it": nn.Linear(2, 2), "then": nn.Linear(2, 2)}).to(dtype)


Mixing = Callable[[nn.ModuleDict, Tensor], Tensor]


def through(mix: Callable[[Tensor], Tensor]) -> Mixing:
    """Losses of two layers, with something between them."""
    return lambda model, x_BC: model["then"](mix(model["it"](x_BC)).sin()).float().sum(1)


def of_losses(mix: Callable[[Tensor], Tensor]) -> Mixing:
    """Losses of two layers, and something done to them."""
    return lambda model, x_BC: mix(through(lambda hidden: hidden)(model, x_BC).exp())


MIXING = {
    "mean": through(lambda x_BC: x_BC - x_BC.mean(0)),
    "detached mean": through(lambda x_BC: x_BC - x_BC.detach().mean(0)),
    "earlier": through(lambda x_BC: x_BC.cumsum(0)),
    "later": through(lambda x_BC: x_BC.flip(0).cumsum(0).flip(0)),
    "next": through(lambda x_BC: torch.cat([x_BC[:1], x_BC[1:] + x_BC[:-1]])),
    "other rows": through(lambda x_BC: x_BC.roll(1, 0)),
    "sum of losses": of_losses(lambda losses_B: losses_B + losses_B.sum()),
    "scaled by the mean": of_losses(lambda losses_B: losses_B / losses_B.detach().mean()),
    "softmax of losses": of_losses(lambda losses_B: losses_B * losses_B.detach().softmax(0)),
    "linear in earlier": lambda model, x_BC: model["it"](x_BC).cumsum(0).float().sum(1),
    "by its place": of_losses(lambda losses_B: losses_B * torch.arange(1, len(losses_B) + 1)),
    "with itself": lambda model, x_BC: (model["it"](x_BC) @ model["it"](x_BC).T).float().sum(1),
}


def check(losses_of: Mixing, x_NC: Tensor, dtype: torch.dtype = torch.float32) -> ClippedSums:
    model = two_layers(dtype)
    sums = ClippedSums(model, max_grad_norm=1e-3)  # so that norms alone tell one from another
    check_apart(sums, lambda rows_B: losses_of(model, x_NC[rows_B].to(dtype)), records=len(x_NC))
    assert norm_of(sums.sums) == 0
    return sums


both = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@both
@pytest.mark.parametrize("losses_of", MIXING.values(), ids=MIXING)
def test_records_that_mix_are_refused(losses_of: Mixing, dtype) -> None:
    with pytest.raises(ValueError, match="whatever records"):
        check(losses_of, torch.randn(5, 2), dtype)


APART = {
    "layers": through(lambda x_BC: x_BC),
    "dropout": through(lambda x_BC: F.dropout(x_BC, 0.5)),
    "losses": of_losses(lambda losses_B: 3 * losses_B),
    "in place": through(lambda x_BC: x_BC.relu_()),
}


@both
@pytest.mark.parametrize("losses_of", APART.values(), ids=APART)
def test_records_that_are_kept_apart_are_let_through(losses_of: Mixing, dtype) -> None:
    check(losses_of, torch.full((5, 2), 2.0) + torch.arange(5)[:, None], dtype)
    check(losses_of, torch.ones(1, 2), dtype)


def test_records_that_tell_nothing_are_passed_over_until_one_tells() -> None:
    x_NC = torch.randn(6, 2)
    x_NC[0], x_NC[1] = torch.nan, 0

    def losses_of(mixing: bool) -> Mixing:
        return lambda model, x_BC: (
            x_BC[:, 0] * (model["it"](x_BC).sum(1) + mixing * model["it"](x_BC).sum())
        )

    check(losses_of(False), x_NC)
    check(losses_of(True), torch.zeros(6, 2))
    with pytest.raises(ValueError, match="whatever records"):
        check(losses_of(True), x_NC)


@pytest.mark.parametrize("through_layer", [False, True])
def test_a_tensor_with_a_gradient_of_its_own_is_refused(through_layer: bool) -> None:
    x_NC = torch.randn(4, 2, requires_grad=True)
    other = nn.Linear(2, 2) if through_layer else nn.Identity()
    with pytest.raises(ValueError, match="requires a gradient of its own"):
        check(lambda model, x_BC: model["it"](other(x_BC)).sum(1), x_NC)
