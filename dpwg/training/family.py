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

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dpwg.files import whole
from dpwg.privacy.accounting import PrivacyPlan
from dpwg.release.folder import load_public
from dpwg.release.provenance import photo_inputs
from dpwg.release.shared import load_tokenizer
from dpwg.training.autoencoder import AutoencoderTraining, make_autoencoder
from dpwg.training.cost import private_rate
from dpwg.training.encodings import encode_examples
from dpwg.training.optimizer import Job, Progress
from dpwg.training.presets import Family, get_preset
from dpwg.training.processes import Ranks
from dpwg.training.public_model import Pretraining, make_public
from dpwg.training.recipe import count_units, train_private
from dpwg.training.run_state import locked
from dpwg.training.sources import Source
from dpwg.training.tokenizer import TokenizerTraining, make_tokenizer
from dpwg.training.upsampler import SuperResolutionTraining, make_upsampler

S = TypeVar("S", TokenizerTraining, AutoencoderTraining, SuperResolutionTraining, Pretraining)

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


@dataclass
class _Work:
    """The stages of one family, with the plans that were made and the time that was spent."""

    _family: Family
    _source: Source
    _out: Path
    _folder: Path
    _seconds: float
    _ranks: Ranks
    _clock: Callable[[], float]

    def __post_init__(self) -> None:
        self._preset, self._kept = get_preset(self._family.preset), self._folder / "recipe.json"
        kept = json.loads(self._kept.read_text()) if self._kept.exists() else {}
        if kept and kept["out"] != str(self._out.resolve()):
            raise ValueError(
                f"Expected out={kept['out']}, which the run in {self._folder} began with, found "
                f"{self._out}; take another run folder."
            )
        self._before: float = kept.get("seconds", 0.0)
        self._plans: dict[str, dict[str, Any]] = kept.get("plans", {})
        self._started = self._clock()
        self._ranks.wait()

    def is_there(self, stage: str) -> bool:
        return (self._out / stage / "config.json").exists()

    def run(self, stage: str) -> Iterator[Report]:
        """One stage to its end."""
        started, public = self._spent, stage in self._family.shares
        steps = self._public(stage) if public else self._private(stage)
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

    def _fit(self, stage: str, settings: S, rehearse: Callable[[S], Iterator[Progress]]) -> S:
        """The settings of a public stage, for the steps that it has time for, or began with."""
        if stage not in self._plans:
            moments = [time.monotonic() for _ in rehearse(_with(settings, REHEARSED, every=1))]
            step = (moments[-1] - moments[1]) / (len(moments) - 2)
            self._plans[stage] = {
                "steps": max(REHEARSED, int(self._ranks.agree(self._time_for(stage) / step))),
                "batch": settings.batch,
                "examples_a_second": settings.batch / step,
            }
            self._save()
        return _with(settings, self._plans[stage]["steps"])

    def _public(self, stage: str) -> Iterator[Progress]:
        """One of the public stages."""
        preset, source, folder = self._preset, self._source, self._out / "tokenizer"
        job = Job(
            records=source.public,
            out=self._out / stage,
            cache=source.cache,
            ranks=self._ranks,
            folder=self._folder / stage,
            fit=functools.partial(self._fit, stage),
        )
        if stage == "tokenizer":
            if isinstance(preset.tokenizer_training, AutoencoderTraining):
                return make_autoencoder(job, preset.tokenizer, preset.tokenizer_training)
            return make_tokenizer(job, preset.tokenizer, preset.tokenizer_training)
        if stage == "upsampler":
            config, own = preset.superresolution, preset.superresolution_training
            return make_upsampler(job, config, own, load_tokenizer(folder))
        count, encoder = len(source.public), source.encoder
        return make_public(
            job,
            encoder,
            preset,
            preset.pretraining,
            tokenizer_folder=folder,
            inputs=photo_inputs(
                count, encoder.id, cleaned=source.cleaned, upsampled=preset.upsampler != "none"
            ),
            delta=self._family.delta,
            upsampler=preset.upsampler,
            compiled=self._ranks.device.type == "cuda",
        )

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
        seconds = {run.name: self._time_for(run.name) for run in left}
        for run in left:
            records = count_units(self._source.private, run.unit)
            if (examples := seconds[run.name] * rate) < micro_batch:
                raise ValueError(
                    f"Expected time for more than {examples:.0f} examples of {run.name}, which is "
                    f"not even a micro-batch of {micro_batch}; give more minutes."
                )
            plan = run.plan(examples, records, self._family.delta)
            self._plans[run.name] = {
                "steps": plan.steps,
                "micro_batch": micro_batch,
                "examples_a_second": rate,
                "plan": dataclasses.asdict(plan),
            }
        self._save()

    def _private(self, name: str) -> Iterator[Progress]:
        self._plan_private()
        source, started = self._source, self._clock()
        tokenizer = load_tokenizer(self._out / "tokenizer")
        yield from encode_examples(source.private, source.encoder, tokenizer, source.cache)
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
