"""The weights of a run: float32 parameters, the copy that computes, Adam, and the average."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dpwg.config import Config, Decay, Positive
from dpwg.device import pick_precision

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Optimization(Config):
    """AdamW and the average of its iterates. `precision` is as in `dpwg.device`."""

    learning_rate: Positive = 1e-3
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.0
    ema_decay: Decay = 0.99
    precision: Annotated[str, Field(pattern="^(auto|bfloat16|float32)$")] = "auto"


class Weights(Generic[M]):
    """A model's trainable parameters in float32, and `worker`, the copy that computes gradients.

    One `step` takes gradients by parameter name, moves the parameters, their average and the
    worker. The average is post-processing: it costs no privacy.
    """

    def __init__(self, model: M, settings: Optimization) -> None:
        self.model = model
        self.settings = settings
        precision = pick_precision(next(model.parameters()).device, settings.precision)
        self.worker: M = copy.deepcopy(model).to(getattr(torch, precision))
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._copies = {n: p for n, p in self.worker.named_parameters() if n in self.parameters}
        self._average = {n: p.detach().clone() for n, p in self.parameters.items()}
        self._adam = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor], *, factor: float) -> None:
        """One Adam step at `factor` times the learning rate."""
        for group in self._adam.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name]
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self.steps += 1
        decay = min(self.settings.ema_decay, self.steps / (self.steps + 9))
        for name, parameter in self.parameters.items():
            self._average[name].lerp_(parameter, 1 - decay)
            self._copies[name].copy_(parameter)

    def clipped_step(
        self, gradients: dict[str, Tensor], *, max_grad_norm: float, factor: float
    ) -> None:
        """`step` after scaling the gradients in place to a common norm of `max_grad_norm` at most.

        That is clipping of a batch's mean, against steps that are too long; it protects no record.
        """
        norm = torch.nn.utils.get_total_norm(gradients.values())
        for gradient in gradients.values():
            gradient.mul_((max_grad_norm / norm).clamp(max=1))
        self.step(gradients, factor=factor)

    def state(self) -> dict[str, Tensor]:
        """Everything that `load` needs to go on."""
        tensors = {"steps": torch.tensor(self.steps)}
        for name, parameter in self.parameters.items():
            tensors[f"parameter/{name}"] = parameter.detach()
            tensors[f"average/{name}"] = self._average[name]
            for key, value in self._adam.state.get(parameter, {}).items():
                tensors[f"adam.{key}/{name}"] = value
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a state; its parameters must be this model's."""
        found = {name.partition("/")[2] for name in tensors if name.startswith("parameter/")}
        if found != set(self.parameters):
            raise ValueError(
                f"Expected the state's {len(found)} parameters to be the model's "
                f"{len(self.parameters)}; resume with the settings that the run began with."
            )
        self.steps = int(tensors["steps"])
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])
            self._average[name].copy_(tensors[f"average/{name}"])
            self._copies[name].copy_(parameter)
            self._adam.state[parameter] = {
                key: tensors[f"adam.{key}/{name}"].to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"adam.{key}/{name}" in tensors
            }

    @torch.no_grad()
    def finish(self) -> M:
        """Put the average into the model, and return it."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self._average[name])
        return self.model
