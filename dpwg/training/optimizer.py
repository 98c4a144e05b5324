"""The weights of a run: float32 parameters, the copy that computes, Adam, and the average; what a
run reports; and the steps that all public trainings but the tokenizer's take.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dpwg.config import Config, Count, Decay, Natural, Positive
from dpwg.data.records import Records
from dpwg.device import pick_precision
from dpwg.training.processes import Ranks
from dpwg.training.run_state import load_state, locked, save_state

M = TypeVar("M", bound=nn.Module)
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Optimization(Config):
    """AdamW and the average of its iterates. `precision` is as in `dpwg.device`."""

    learning_rate: Positive = 1e-3
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.0
    ema_decay: Decay = 0.99
    precision: Annotated[str, Field(pattern="^(auto|bfloat16|float32)$")] = "auto"


@dataclass(frozen=True, kw_only=True)
class PublicTraining(Optimization):
    """Settings of `descend`, with a batch's mean gradient clipped to `max_grad_norm`."""

    steps: Count
    batch: Count
    warmup: Natural
    max_grad_norm: float = 1.0
    report_every: Count = 50
    save_every: Count = 200
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report of a stage; `loss` is the mean over the examples since the last one.

    `epsilon` is what the ledger has spent so far, at the steps that are saved: accounting takes
    longer than a small step. In private training everything but it and the steps is itself private:
    the realised batch sizes in `examples` and `seconds` as much as `loss`, `gradient_norm` and
    `refused` (records left out for a gradient that is not finite). Show them to the owner of the
    data, never publish them.
    """

    step: int
    steps: int
    stage: str = "training"
    examples: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    gradient_norm: float | None = None
    refused: int = 0
    epsilon: float | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A public part to be made of `records`: where it goes, where encodings are kept, and where the
    training state, if anywhere.

    `fit` sets the steps by the time there is: it takes the settings and what trains a copy with
    others, which shows how fast that is.
    """

    records: Records
    out: Path
    cache: Path
    ranks: Ranks
    folder: Path | None = None
    fit: Callable[[Any, Callable[[Any], Iterator[Progress]]], Any] | None = None

    def run(
        self, model: M, settings: S, steps: Callable[[M, S, Path | None], Iterator[Progress]]
    ) -> Iterator[Progress]:
        """Take the steps, as many as fit."""
        if self.fit:
            settings = self.fit(settings, lambda few: steps(copy.deepcopy(model), few, None))
        return steps(model, settings, self.folder)


def finished(reports: Generator[Progress, None, T]) -> T:
    """Run a stage without looking at its reports; what it returns."""
    while True:
        try:
            next(reports)
        except StopIteration as end:
            answer: T = end.value
            return answer


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.05) -> float:
    """The factor of the learning rate at a step: linear up, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


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


class Stateful(Protocol):
    """What a run's state holds beside the weights."""

    def state(self) -> dict[str, Tensor]: ...

    def load(self, tensors: dict[str, Tensor]) -> None: ...


def descend(
    weights: Weights[M],
    settings: PublicTraining,
    ranks: Ranks,
    loss_of_step: Callable[[torch.Generator], Tensor],
    folder: Path | None = None,
    run: dict[str, Any] | None = None,
    beside: Stateful | None = None,
) -> Iterator[Progress]:
    """Take the steps that are left of the `run` in `folder`, whose states are saved, and average.

    `loss_of_step` computes this rank's share of the next step's loss with `weights.worker`: the
    shares add up to the mean of the batch. Its generator is seeded for where the run begins or goes
    on. What stands `beside` the weights is saved with them. Gradients are scaled down together to a
    norm of `max_grad_norm`, against steps that are too long; that protects no record.
    """
    own = dict(weights.worker.named_parameters())
    losses: list[float] = []
    with locked(folder if ranks.leads else None):
        if folder and (saved := load_state(folder, run or {})):
            for part in filter(None, (weights, beside)):
                part.load(saved[0])
        generator = torch.Generator().manual_seed(settings.seed + weights.steps)
        started, first = time.monotonic(), weights.steps
        while weights.steps < settings.steps:
            loss = loss_of_step(generator)
            found = torch.autograd.grad(
                loss, list(own.values()), allow_unused=True, materialize_grads=True
            )
            gradients = {name: g.float() for name, g in zip(own, found, strict=True)}
            total = loss.detach()
            ranks.sum_([total, *gradients.values()])
            norm = nn.utils.get_total_norm(gradients.values())
            for gradient in gradients.values():
                gradient.mul_((settings.max_grad_norm / norm).clamp(max=1))
            factor = warmup_cosine(weights.steps, settings.steps, settings.warmup)
            weights.step(gradients, factor=factor)
            losses.append(total.item())
            done, last = weights.steps, weights.steps == settings.steps
            if folder and ranks.leads and (last or done % settings.save_every == 0):
                others = beside.state() if beside else {}
                save_state(folder, weights.state() | others, run or {})
            if last or done % settings.report_every == 0:
                yield Progress(
                    step=done,
                    steps=settings.steps,
                    examples=(done - first) * settings.batch,
                    seconds=time.monotonic() - started,
                    loss=sum(losses) / len(losses),
                )
                losses.clear()
        weights.finish()
