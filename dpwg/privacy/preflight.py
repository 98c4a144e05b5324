"""Which layers of a model the private engine takes, and what it refuses by name."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dpwg.privacy.layer_gradients import RULES, trained_parameters
from dpwg.privacy.lora import LoRALinear


def trainable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that hold trainable parameters, by name; anything unsupported is refused."""
    layers: dict[str, nn.Module] = {}
    owners: dict[int, str] = {}
    within_pairs: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) or getattr(module, "track_running_stats", False):
            raise ValueError(
                f"Expected {name or 'the model'!r} to keep no statistics over records, found "
                f"{type(module).__name__}; use LayerNorm."
            )
        if module in within_pairs:
            continue
        own = {n: p for n, p in module.named_parameters(recurse=False) if p.requires_grad}
        if _is_one_layer(module):
            own = trained_parameters(module)
            within_pairs.update(module.modules())
        elif own:
            _check_supported(name, module, own)
        else:
            continue
        for parameter in own.values():
            if id(parameter) in owners:
                raise ValueError(
                    f"{name!r} shares a parameter with {owners[id(parameter)]!r}; untie them."
                )
            owners[id(parameter)] = name
        layers[name] = module
    if not layers:
        raise ValueError("Expected a model with trainable parameters, found none.")
    return layers


def _is_one_layer(module: nn.Module) -> bool:
    """Whether this is a LoRALinear that has a rule of its own: its pair is trained and no more.

    Of any other LoRALinear the Linears are layers of their own. So they are in bfloat16, where a
    merged weight would round off what the pair adds.
    """
    return (
        type(module) is LoRALinear
        and module.mergeable()
        and {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        == set(LoRALinear.PAIR)
    )


def _check_supported(name: str, module: nn.Module, own: dict[str, nn.Parameter]) -> None:
    """Refuse a module whose trainable parameters have no rule."""
    if type(module) not in RULES:
        raise ValueError(
            f"Expected the trainable parameters {sorted(own)} of {name or 'the model'!r} to "
            f"belong to Linear, LayerNorm or Embedding, found {type(module).__name__}; freeze "
            "them or build the layer from those."
        )
    if not own.keys() <= {"weight", "bias"}:
        raise ValueError(
            f"Expected a weight and a bias in {name!r}, found {sorted(own)}; remove the "
            "reparametrization."
        )
    if len(own) < len(list(module.parameters(recurse=False))):
        raise ValueError(f"Expected all parameters of {name!r} trainable or none; freeze both.")
    if isinstance(module, nn.Embedding) and (
        module.padding_idx is not None or module.max_norm is not None or module.scale_grad_by_freq
    ):
        raise ValueError(
            f"Expected no padding_idx, max_norm or scale_grad_by_freq in {name!r}; remove it."
        )
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
        raise ValueError(f"Expected {name!r} to normalize one dimension; flatten the others.")
