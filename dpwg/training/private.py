"""Private fine-tuning: the only room where model, data and privacy meet.

Guarantee. A record is one image with its captions; or one group, all images of a person, a patient
or whatever the owner of the data joins, with their captions. Let D and D' be two sets of records
that differ by one whole record: where D has it, D' has one that adds nothing to any sum (zero-out,
that is add or remove one where the number of records is public). For every set of outcomes S,
P[weights(D) in S] <= exp(epsilon) P[weights(D') in S] + delta, with
epsilon = `ledger.epsilons(delta).pld`, because

1. each step draws every record independently with probability `plan.sampling_rate`; of several
   processes (`ranks`) each has records of its own, for which it alone draws;
2. the step sums the records' gradients, each clipped to L2 norm `plan.max_grad_norm` over all
   trainable parameters together (`privacy.clipping`); nothing else is computed from the records,
   and none has a part in another's gradient, which is tried before the first step (`preflight`).
   A record has one gradient, whatever is in it: that of one of its images with one caption of that
   image (`Examples`), picked by a number that is drawn for the record alone;
3. to that sum goes Gaussian noise of standard deviation noise_multiplier * max_grad_norm in every
   coordinate, from a generator that the operating system's entropy keys for this run, once a step
   and in an empty step too;
4. it is divided by the expected batch size, a public number; Adam and the average of the iterates
   see the noised sum only;
5. the ledger records the step with the rate and the noise that were used, and is saved in one file
   with the weights that the step made.

Steps that were begun and never finished have no part in the weights. They are counted all the same,
on the disk, before a step uses its batch: who ends a run because of what it reports, and resumes
it, selects among outcomes, which epsilon does not cover. The ledger has them as `lost`, and the
card tells of them.

On groups: given the numbers that pick images, D and D' have sums that differ by one clipped
gradient at most, and a mixture over numbers that are as likely under both keeps the bound. A group
of a thousand images is thus bounded like one of a single image, by one image a visit; none has to
be dropped. Per image, a large group is seen less often than a small one. Which images make a group
is the data owner's word.

The weights are covered, and what follows from them. Losses and gradient norms in `Progress` and
everything in the run's folder are not: they are for the owner of the data.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from dpwg.config import Count, Decay, Natural, Positive, Share
from dpwg.method.generator import Generator
from dpwg.privacy.accounting import Ledger, LedgerEntry, PrivacyPlan
from dpwg.privacy.clipping import ClippedSums
from dpwg.privacy.lora import merge_lora, round_lora
from dpwg.privacy.mechanism import add_gaussian_noise, poisson_sample, system_generator
from dpwg.privacy.preflight import check_apart
from dpwg.training.examples import Examples
from dpwg.training.optimizer import Optimization, Progress, Weights, warmup_cosine
from dpwg.training.processes import Ranks
from dpwg.training.run_state import count_begun, fingerprint, load_state, save_state, steps_begun


@dataclass(frozen=True, kw_only=True)
class Finetuning(Optimization):
    """Settings of private fine-tuning, none of them chosen by looking at private results.

    `lora_rank` 0 trains parameters as they are, all of WaveletGPT. `micro_batch` says how many
    records are computed at once: nothing but speed and memory depends on it. Adam's betas are lower
    than usual, for runs of few steps (docs/LOG.md).
    """

    learning_rate: Positive = 1e-2
    beta1: float = 0.6
    beta2: float = 0.9
    ema_decay: Decay = 0.9
    warmup: Natural = 5
    caption_dropout: Share = 0.1
    lora_rank: Natural = 16
    micro_batch: Count = 64
    save_every: Count = 5


class _Kind(TypedDict):
    """What the ledger knows of a step."""

    sampling_rate: float
    noise_multiplier: float


class PrivateTraining:
    """One run of DP-SGD on `model`, which ends with averaged weights.

    `plan.records` must be the number of examples. A plan without noise trains without clipping
    too, and has no guarantee. With a `folder`, state is saved there and an earlier run of the same
    plan and settings goes on; the folder is private, and the caller's alone (`run_state.locked`).
    Tests alone pass a `generator`.

    After the last step `adapter` holds the averaged LoRA pairs, float16, as `merge_adapter` takes
    them, and the model is what they make of its base; or, bfloat16, what was trained of a model
    that keeps the rest; None where every parameter was trained.
    """

    def __init__(
        self,
        model: Generator,
        examples: Examples,
        plan: PrivacyPlan,
        settings: Finetuning,
        folder: Path | None = None,
        *,
        ranks: Ranks | None = None,
        generator: np.random.Generator | None = None,
    ) -> None:
        if plan.records != len(examples):
            raise ValueError(
                f"Expected plan.records={plan.records} to be the {len(examples)} examples; the "
                "sampling rate of the accounting would not be the one that is used."
            )
        self._ranks = ranks or Ranks()
        precision = self._ranks.agree_on_precision(settings.precision)
        settings = dataclasses.replace(settings, precision=precision)
        self._plan, self.settings, self.ledger = plan, settings, Ledger()
        self._model, self._examples, self._folder = model, examples, folder
        self._kind: _Kind = {
            "sampling_rate": plan.sampling_rate,
            "noise_multiplier": plan.noise_multiplier,
        }
        self._generator = generator or system_generator()
        self.adapter: dict[str, Tensor] | None = None
        self._run = {
            "plan": dataclasses.asdict(plan),
            "settings": settings.to_json(),
            "base": fingerprint(model),
            "data": examples.digest,
        }
        model.make_trainable(settings.lora_rank)
        model.to(self._ranks.device)
        self._ranks.broadcast_(model.parameters())  # LoRA begins at random
        self._weights = Weights(model, settings)
        bound = plan.max_grad_norm if plan.noise_multiplier else math.inf
        self._clipped = ClippedSums(self._weights.worker, max_grad_norm=bound)
        if folder and (saved := load_state(folder, self._run)):
            tensors, values = saved
            self._weights.load(tensors)
            self.ledger = Ledger.from_json(values["ledger"])
            taken = LedgerEntry(**self._kind, steps=self._weights.steps)
            if [dataclasses.replace(entry, lost=0) for entry in self.ledger.entries] != [taken]:
                raise ValueError(
                    f"Expected {taken} in the ledger of {folder}, found {self.ledger.entries}; the "
                    "state is damaged, begin the run again."
                )
        if folder and (lost := steps_begun(folder, self._run) - self.ledger.begun.steps) > 0:
            self.ledger.record_step(**self._kind, steps=0, lost=lost)

    @property
    def plan(self) -> PrivacyPlan:
        """What clips, samples, noises and is recorded: one plan from the first step to the last."""
        return self._plan

    def run(self) -> Iterator[Progress]:
        """Take the remaining steps of the plan, one report a step."""
        plan, started, examples = self.plan, time.monotonic(), 0
        check_apart(self._clipped, self._losses, records=plan.records)
        while self._weights.steps < plan.steps:
            if self._folder and self._ranks.leads:
                count_begun(self._folder, self.ledger.begun.steps + 1, self._run)
            seen = self._sum_clipped()
            if self._ranks.leads:
                add_gaussian_noise(
                    self._clipped.sums,
                    standard_deviation=plan.noise_multiplier * plan.max_grad_norm,
                    generator=self._generator,
                )
            self._ranks.sum_([seen, *self._clipped.sums.values()])
            self.ledger.record_step(**self._kind)
            gradients = {
                name: total / plan.batch_size for name, total in self._clipped.sums.items()
            }
            factor = warmup_cosine(self._weights.steps, plan.steps, self.settings.warmup)
            self._weights.step(gradients, factor=factor)
            records, loss, norm, refused = seen.tolist()
            done, examples = self._weights.steps, examples + round(records)
            save = done % self.settings.save_every == 0 or done == plan.steps
            if save and self._folder and self._ranks.leads:
                values = {**self._run, "ledger": self.ledger.to_json()}
                save_state(self._folder, self._weights.state(), values)
            yield Progress(
                step=done,
                steps=plan.steps,
                examples=examples,
                seconds=time.monotonic() - started,
                loss=loss / max(1, records),
                gradient_norm=norm / max(1, records),
                refused=round(refused),
                epsilon=self.ledger.pld_epsilon(plan.delta) if save else None,
            )
        self._weights.finish()
        if self.settings.lora_rank:
            self.adapter = round_lora(self._model)
            merge_lora(self._model)
        elif any(not p.requires_grad for p in self._model.parameters()):
            trained = self._weights.parameters.items()
            self.adapter = {name: p.detach().cpu().bfloat16() for name, p in trained}
        self._model.requires_grad_(True)

    def _losses(self, indices_B: Tensor) -> Tensor:
        draw_B = (indices_B.double() * 0.618034).frac()  # as the steps, each record has its own
        batch = self._examples.batch(indices_B, draw_B=draw_B).to(self._ranks.device)
        return self._weights.worker.losses(batch)

    def _sum_clipped(self) -> Tensor:
        """Draw a batch and sum this rank's share of it: the records whose index is its own.

        Returns how many records that was, their losses and norms in sum, and how many of them were
        refused: all of it private. Captions are drawn for every record, chosen or not, so that no
        draw depends on micro-batches or ranks.
        """
        plan, size, worker = self.plan, self.settings.micro_batch, self._weights.worker
        chosen_N = poisson_sample(plan.records, plan.sampling_rate, self._generator)
        caption_R, drop_R = torch.from_numpy(self._generator.random((2, plan.records)))
        own_N = chosen_N[chosen_N % self._ranks.world == self._ranks.rank]
        seen = torch.zeros(4, dtype=torch.float64, device=self._ranks.device)
        self._clipped.zero()
        for part_B in own_N.split(size) if len(own_N) else ():
            count = len(part_B)
            padded_B = torch.cat((part_B, part_B[:1].expand(size - count)))
            batch = self._examples.batch(
                padded_B,
                draw_B=caption_R[padded_B],
                dropped_B=drop_R[padded_B] < self.settings.caption_dropout,
            ).to(self._ranks.device)
            added = self._clipped.add(
                functools.partial(worker.losses, batch),
                torch.arange(size, device=self._ranks.device) < count,
            )
            losses_B, norms_B = added.losses_B[:count], added.norms_B[:count]
            own = (count, float(losses_B.sum()), float(norms_B.sum()), added.refused)
            seen += torch.tensor(own, dtype=torch.float64, device=self._ranks.device)
        return seen
