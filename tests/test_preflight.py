"""What the private engine refuses before a run: layers without a rule, and records that mix."""

from __future__ import annotations

import math
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
        (WithParameter(), "'the model'.*WithParameter.*gain"),
        (Tied(), "'logits' shares a parameter with 'embedding'"),
        (partially_frozen(), "'partly'"),
        (nn.ModuleDict({"ids": nn.Embedding(4, 3, padding_idx=0)}), "'ids'.*padding_idx"),
        (nn.ModuleDict({"ids": nn.Embedding(4, 3, max_norm=1.0)}), "'ids'.*max_norm"),
        (nn.ModuleDict({"ids": nn.Embedding(4, 3, scale_grad_by_freq=True)}), "'ids'.*freq"),
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


def test_a_pair_that_shares_a_matrix_is_refused() -> None:
    model = nn.ModuleDict({own: LoRALinear(nn.Linear(3, 3), 2) for own in ("one", "other")})
    model["other"].down = model["one"].down
    with pytest.raises(ValueError, match="'other' shares a parameter with 'one'"):
        ClippedSums(model, max_grad_norm=1.0)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("losses_of", MIXING.values(), ids=MIXING)
def test_records_that_mix_are_refused(losses_of: Mixing, dtype) -> None:
    with pytest.raises(ValueError, match="whatever records stand beside it"):
        check(losses_of, torch.randn(5, 2), dtype)


def test_positions_before_records_are_refused() -> None:
    for positions in (3, 4):
        x_NTC = torch.randn(5, positions, 2)
        with pytest.raises(ValueError, match=r"batch dimension"):
            check(lambda model, x: model["it"](x.transpose(0, 1)).sum((0, 2)), x_NTC)


APART = {
    "layers": through(lambda x_BC: x_BC),
    "dropout": through(lambda x_BC: F.dropout(x_BC, 0.5)),
    "losses": of_losses(lambda losses_B: 3 * losses_B),
    "in place": through(lambda x_BC: x_BC.relu_()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
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
    with pytest.raises(ValueError, match="whatever records stand beside it"):
        check(losses_of(True), x_NC)


@pytest.mark.parametrize("through_layer", [False, True])
def test_a_tensor_with_a_gradient_of_its_own_is_refused(through_layer: bool) -> None:
    x_NC = torch.randn(4, 2, requires_grad=True)
    other = nn.Linear(2, 2) if through_layer else nn.Identity()
    with pytest.raises(ValueError, match="requires a gradient of its own"):
        check(lambda model, x_BC: model["it"](other(x_BC)).sum(1), x_NC)
