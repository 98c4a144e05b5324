"""A whole family of releases within a time budget: from records to every checkpoint.

A family has a sensitive set and a public one. Its stages are the tokenizer, the upsampler, the
public model and the private runs, in this order; each takes its share of the time that is left, and
what the device does a second, measured before the stage, says how many steps that is. A plan is
kept with the training state before a stage's first step, so that a run that was killed goes on with
it: a private run is never cut short and never planned anew. What is there already is kept.

Nothing here looks at a private loss, and the plans of the private runs depend on public numbers
alone: they are made together, before any private record is read, from how many records there are,
from the device's speed on made-up ones and from the time that the public stages took. Encoding the
private records, once, comes on top of the budget.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from dpwg.files import whole
from dpwg.method.predictive import new_tokenizer
from dpwg.privacy.accounting import Ledger, PrivacyPlan, default_delta
from dpwg.privacy.card import PrivacyCard
from dpwg.release.folder import Release, load_public, save_release
from dpwg.release.provenance import photo_inputs
from dpwg.release.shared import load_tokenizer, save_tokenizer
from dpwg.training.cost import matrix_flops, private_rate, training_flops
from dpwg.training.encodings import encode_records
from dpwg.training.optimizer import Progress
from dpwg.training.presets import Family, get_preset
from dpwg.training.processes import Ranks
from dpwg.training.public_model import Pretraining, pretrain
from dpwg.training.recipe import count_units, train_private
from dpwg.training.run_state import locked
from dpwg.training.sources import Source
from dpwg.training.tokenizer import TokenizerTraining, train_tokenizer
from dpwg.training.upsampler import SuperResolutionTraining, train_superresolution
from dpwg.upsampling.superresolution import SuperResolution, save_superresolution

S = TypeVar("S", TokenizerTraining, SuperResolutionTraining, Pretraining)

MARGIN = 0.92
"""The part of a stage's time that is planned for: a machine's speed drifts."""
MICRO_BATCHES: dict[str, tuple[int, ...]] = {"cpu": (), "cuda": (256, 1024)}
"""Micro-batches tried beside the preset's; nothing but speed and memory depends on them."""
REHEARSED = 6
"""Steps that are taken of a public stage to see how fast it is."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A stage's progress; the last of a stage has what it did in `done`.

    As in `Progress`, losses of private runs are private: they are not in here.
    """

    stage: str
    step: int
    steps: int
    done: dict[str, Any] | None = None


def train_family(
    family: Family,
    source: Source,
    out: Path,
    folder: Path,
    *,
    minutes: float,
    ranks: Ranks | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Report]:
    """Train what is missing of a family in `out`, within about so many minutes of work.

    `folder` holds the private training state, the plans and the time that was spent: the minutes
    count from the family's first start on, not from a resumption. Raises ValueError for releases in
    `out` that do not belong together, for a folder of another family's run, and for a time that is
    too short for the private runs.
    """
    ranks = ranks or Ranks()
    with locked(folder if ranks.leads else None):
        work = _Work(family, source, out, folder, 60 * minutes, ranks, clock)
        for stage in family.stages:
            if not work.is_there(stage):
                yield from work.run(stage)


class _Work:
    """The stages of one family, with the plans that were made and the time that was spent."""

    def __init__(
        self,
        family: Family,
        source: Source,
        out: Path,
        folder: Path,
        seconds: float,
        ranks: Ranks,
        clock: Callable[[], float],
    ) -> None:
        self._family, self._source, self._out, self._folder = family, source, out, folder
        self._seconds, self._ranks, self._clock = seconds, ranks, clock
        self._preset, self._kept = get_preset(family.preset), folder / "recipe.json"
        kept = json.loads(self._kept.read_text()) if self._kept.exists() else {}
        if kept and kept["out"] != str(out.resolve()):
            raise ValueError(
                f"Expected out={kept['out']}, which the run in {folder} began with, found {out}; "
                "take another run folder."
            )
        self._before: float = kept.get("seconds", 0.0)
        self._plans: dict[str, dict[str, Any]] = kept.get("plans", {})
        self._started = clock()
        ranks.wait()

    def is_there(self, stage: str) -> bool:
        return (self._out / stage / "config.json").exists()

    def run(self, stage: str) -> Iterator[Report]:
        """One stage to its end."""
        started, public = self._spent, stage in self._family.shares
        steps = getattr(self, f"_{stage}")() if public else self._private(stage)
        for progress in steps:
            own = stage if progress.stage == "training" else progress.stage
            yield Report(stage=own, step=progress.step, steps=progress.steps)
            if own == stage:
                self._save()
        self._ranks.wait()
        done = dict(self._plans[stage])
        if public:  # how long a private run takes is private, a little
            done["seconds"] = self._spent - started
        yield Report(stage=stage, step=done["steps"], steps=done["steps"], done=done)
        self._save()

    @property
    def _spent(self) -> float:
        return self._before + self._clock() - self._started

    def _time_for(self, stage: str) -> float:
        """The seconds of a stage: its share of what is left, among the stages that are left."""
        shares = self._family.stages
        left = sum(shares[name] for name in shares if name == stage or not self.is_there(name))
        seconds = max(0.0, self._seconds - self._spent) * shares[stage] / left
        return MARGIN * self._ranks.agree(seconds)

    def _save(self) -> None:
        if self._ranks.leads:
            values = {"out": str(self._out.resolve()), "seconds": self._spent, "plans": self._plans}
            with whole(self._kept, private=True) as partial:
                partial.write_text(json.dumps(values, indent=1) + "\n")

    def _fitted(
        self, stage: str, settings: S, train: Callable[[S, bool], Iterator[Progress]]
    ) -> Iterator[Progress]:
        """Train a public stage for as many steps as its time allows, or as it began with.

        `train` takes settings, and whether they are for a few steps of a copy, which tell how fast
        the stage is.
        """
        if stage not in self._plans:
            moments = [time.monotonic() for _ in train(_with(settings, REHEARSED, every=1), True)]
            step = (moments[-1] - moments[1]) / (len(moments) - 2)
            steps = max(REHEARSED, int(self._ranks.agree(self._time_for(stage) / step)))
            rate = settings.batch / step
            self._plans[stage] = {
                "steps": steps, "batch": settings.batch, "examples_a_second": rate
            }  # fmt: skip
            self._save()
        return train(_with(settings, self._plans[stage]["steps"]), False)

    def _tokenizer(self) -> Iterator[Progress]:
        images_NCHW = yield from self._source.coarse(self._preset.tokenizer.coarse_size)
        torch.manual_seed(self._preset.tokenizer_training.seed)
        tokenizer = new_tokenizer(self._preset.tokenizer)

        def train(settings: TokenizerTraining, rehearsed: bool) -> Iterator[Progress]:
            if rehearsed:
                copied = copy.deepcopy(tokenizer)
                return train_tokenizer(copied, images_NCHW[:500], settings, self._ranks)
            return train_tokenizer(tokenizer, images_NCHW, settings, self._ranks)

        yield from self._fitted("tokenizer", self._preset.tokenizer_training, train)
        if self._ranks.leads:
            save_tokenizer(self._out / "tokenizer", tokenizer.cpu())

    def _upsampler(self) -> Iterator[Progress]:
        tokenizer = load_tokenizer(self._out / "tokenizer")
        own = self._preset.superresolution_training
        images_NCHW = yield from self._source.images(self._preset.image_size, own.images)
        torch.manual_seed(own.seed)
        model = SuperResolution(self._preset.superresolution)

        def train(settings: SuperResolutionTraining, rehearsed: bool) -> Iterator[Progress]:
            trained = copy.deepcopy(model) if rehearsed else model
            state = None if rehearsed else self._folder / "upsampler"
            given = (tokenizer, images_NCHW, settings, self._ranks, state)
            return train_superresolution(trained, *given)

        yield from self._fitted("upsampler", own, train)
        if self._ranks.leads:
            save_superresolution(self._out / "upsampler", model.cpu())

    def _public(self) -> Iterator[Progress]:
        folder, own = self._out / "tokenizer", self._preset.pretraining
        tokenizer, encoder = load_tokenizer(folder), self._source.encoder
        examples = yield from self._source.public_examples(tokenizer)
        torch.manual_seed(own.seed)
        model = self._preset.new_model(tokenizer, encoder)
        compiled = self._ranks.device.type == "cuda"

        def train(settings: Pretraining, rehearsed: bool) -> Iterator[Progress]:
            trained = copy.deepcopy(model) if rehearsed else model
            state = None if rehearsed else self._folder / "public"
            return pretrain(trained, examples, settings, state, self._ranks, compiled=compiled)

        steps = self._fitted("public", own, train)
        plan = self._plans["public"]
        of_peak = training_flops(model) * plan["examples_a_second"] / matrix_flops(self._ranks)
        plan["share_of_peak"] = of_peak
        yield from steps
        if self._ranks.leads:
            card = PrivacyCard.from_ledger(
                Ledger(),
                delta=default_delta(len(self._source.private)),
                dataset="none: public data only",
                records=0,
                max_grad_norm=None,
                public_inputs=photo_inputs(len(examples), encoder.id, cleaned=self._source.cleaned),
                target_epsilon=0.0,
            )
            release = Release(
                model=model.cpu(),
                tokenizer=tokenizer,
                card=card,
                text_encoder=encoder.id,
                upsampler=self._preset.upsampler,
            )
            save_release(self._out / "public", release, tokenizer_folder=folder)

    def _plan_private(self) -> None:
        """Plan every private run that is left, before any private record is read."""
        left = [run for run in self._family.runs if run.name not in self._plans]
        if not left:
            return
        model, own = load_public(self._out / "public").model, self._preset.finetuning
        rates = {
            size: self._ranks.agree(
                private_rate(model, dataclasses.replace(own, micro_batch=size), self._ranks)
            )
            for size in (own.micro_batch, *MICRO_BATCHES[self._ranks.device.type])
        }
        micro_batch = max(rates, key=lambda size: rates[size])
        rate = rates[micro_batch]
        public = self._plans.get("public", {}).get("examples_a_second")
        seconds = {run.name: self._time_for(run.name) for run in left}
        for run in left:
            records = count_units(self._source.private, run.unit)
            if (examples := seconds[run.name] * rate) < micro_batch:
                raise ValueError(
                    f"Expected time for more than {examples:.0f} examples of {run.name}, which is "
                    f"not even a micro-batch of {micro_batch}; give more minutes."
                )
            plan = run.plan(examples, records, default_delta(len(self._source.private)))
            self._plans[run.name] = {
                "steps": plan.steps,
                "micro_batch": micro_batch,
                "examples_a_second": rate,
                "private_over_non_private": public and public / rate,
                "plan": dataclasses.asdict(plan),
            }
        self._save()

    def _private(self, name: str) -> Iterator[Progress]:
        self._plan_private()
        source, started = self._source, self._clock()
        tokenizer = load_tokenizer(self._out / "tokenizer")
        yield from encode_records(source.private, source.encoder, tokenizer, source.cache)
        self._before -= self._clock() - started  # it comes on top of the budget
        run = next(run for run in self._family.runs if run.name == name)
        plan, own = self._plans[name], self._preset.finetuning
        warmup = min(own.warmup, plan["steps"] // 4)
        for report in train_private(
            source.private,
            PrivacyPlan(**plan["plan"]),
            out=self._out / name,
            folder=self._folder / name,
            base=self._out / "public",
            settings=dataclasses.replace(own, warmup=warmup, micro_batch=plan["micro_batch"]),
            unit=run.unit,
            called=self._family.private_set,
            target_epsilon=None if run.epsilon == math.inf else run.epsilon,
            tokenizer_folder=self._out / "tokenizer",
            adapter_only=True,
            encoder=source.encoder,
            cache=source.cache,
            ranks=self._ranks,
        ):
            if isinstance(report, Progress) and report.stage == "training":
                yield report


def _with(settings: S, steps: int, every: int | None = None) -> S:
    """The settings for so many steps in all, with reports and warm-up that suit them."""
    changed: dict[str, Any] = {"steps": steps, "warmup": min(settings.warmup, max(1, steps // 4))}
    if every:
        changed["report_every"] = every
    if isinstance(settings, TokenizerTraining):
        foresee = min(settings.foresee_steps, max(1, steps // 4))
        changed |= {"foresee_steps": foresee, "steps": steps - (0 if every else foresee)}
    elif isinstance(settings, Pretraining):
        changed["save_every"] = max(1, min(settings.save_every, steps // 10))
    return dataclasses.replace(settings, **changed)
