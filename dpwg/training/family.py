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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpwg.files import private_folder, whole
from dpwg.method.predictive import new_tokenizer
from dpwg.method.transformer import WaveletGPT
from dpwg.privacy.accounting import Ledger, PrivacyPlan, default_delta
from dpwg.privacy.card import PrivacyCard
from dpwg.release.folder import Release, load_public, save_release
from dpwg.release.provenance import photo_inputs
from dpwg.release.shared import load_tokenizer, save_tokenizer
from dpwg.training.cost import matrix_flops, private_rate, training_flops
from dpwg.training.encodings import encode_records
from dpwg.training.optimizer import Progress
from dpwg.training.presets import get_preset
from dpwg.training.processes import Ranks
from dpwg.training.public_model import Pretraining, pretrain
from dpwg.training.recipe import IMAGE, train_private
from dpwg.training.run_state import locked
from dpwg.training.sources import Source
from dpwg.training.tokenizer import TokenizerTraining, train_tokenizer
from dpwg.training.upsampler import SuperResolutionTraining, train_superresolution
from dpwg.upsampling.superresolution import SuperResolution, save_superresolution

MARGIN = 0.92
"""The part of a stage's time that is planned for: a machine's speed drifts."""
MAX_BATCH = 8192
MAX_GRAD_NORM = 0.1
MICRO_BATCHES: dict[str, tuple[int, ...]] = {"cpu": (), "cuda": (256, 1024)}
"""Micro-batches tried beside the preset's; nothing but speed and memory depends on them."""
REHEARSED = 6
"""Steps that are taken of a public stage to see how fast it is."""


@dataclass(frozen=True, kw_only=True)
class PrivateRun:
    """One private release. `pace` is steps over expected batch: how a number of examples is spent,
    settled on public data (docs/LOG.md). `unit` is "image", or the column that tells records apart.
    """

    name: str
    epsilon: float
    share: float
    pace: float
    unit: str = IMAGE

    def sizes(self, examples: float, records: int) -> tuple[int, int]:
        """Steps and expected batch for about so many examples, of so many records."""
        most = max(1, min(MAX_BATCH, records // 4))
        steps = max(2, round(math.sqrt(examples * self.pace)))
        batch = min(most, max(1, round(examples / steps)))
        return max(steps, round(examples / batch)), batch


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is trained together. The shares are of the time; those of the runs come on top."""

    name: str
    private_set: str
    public_set: str
    preset: str
    runs: tuple[PrivateRun, ...]
    shares: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"tokenizer": 0.15, "upsampler": 0.15, "public": 0.3}
    )

    @property
    def stages(self) -> dict[str, float]:
        """Every stage in order, with its share."""
        return self.shares | {run.name: run.share for run in self.runs}


FAMILIES = {
    "celeba": Family(
        name="celeba",
        private_set="celeba-train",
        public_set="public-photos",
        preset="photos-128",
        runs=(
            PrivateRun(name="eps-10", epsilon=10.0, share=0.1, pace=160 / 4096),
            PrivateRun(name="eps-1", epsilon=1.0, share=0.08, pace=48 / 4096),
            PrivateRun(name="eps-3", epsilon=3.0, share=0.08, pace=80 / 4096),
            PrivateRun(name="eps-inf", epsilon=math.inf, share=0.08, pace=160 / 4096),
            PrivateRun(
                name="person-eps-10", epsilon=10.0, share=0.06, pace=160 / 4096, unit="person"
            ),
        ),
    )
}


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
        budget = _Budget(folder, out, 60 * minutes, ranks, clock)
        work = _Work(family, source, out, folder, budget, ranks)
        for stage in family.stages:
            if not (out / stage / "config.json").exists():
                yield from work.run(stage)


class _Budget:
    """The time that is left and the plans that were made, on disk."""

    def __init__(
        self,
        folder: Path,
        out: Path,
        seconds: float,
        ranks: Ranks,
        clock: Callable[[], float],
    ) -> None:
        self._path, self._out = folder / "recipe.json", str(out.resolve())
        self._seconds, self._ranks, self._clock = seconds, ranks, clock
        if ranks.leads:
            private_folder(folder)
        kept = json.loads(self._path.read_text()) if self._path.exists() else {}
        if kept and kept["out"] != self._out:
            raise ValueError(
                f"Expected out={kept['out']}, which the run in {folder} began with, found "
                f"{self._out}; take another run folder."
            )
        self._before: float = kept.get("seconds", 0.0)
        self.plans: dict[str, dict[str, Any]] = kept.get("plans", {})
        self._started = clock()
        ranks.wait()

    @property
    def spent(self) -> float:
        return self._before + self._clock() - self._started

    def of(self, stage: str, left: dict[str, float]) -> float:
        """The seconds of a stage: its share of what is left, among the stages `left`."""
        seconds = max(0.0, self._seconds - self.spent) * left[stage] / sum(left.values())
        return self._ranks.agree(seconds)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Work that does not count."""
        started = self._clock()
        yield
        self._before -= self._clock() - started

    def save(self) -> None:
        if self._ranks.leads:
            values = {"out": self._out, "seconds": self.spent, "plans": self.plans}
            with whole(self._path, private=True) as partial:
                partial.write_text(json.dumps(values, indent=1) + "\n")


class _Work:
    """The stages of one family, each by a method of its name; private runs by `_private`."""

    def __init__(
        self,
        family: Family,
        source: Source,
        out: Path,
        folder: Path,
        budget: _Budget,
        ranks: Ranks,
    ) -> None:
        self._family, self._source, self._out, self._folder = family, source, out, folder
        self._budget, self._ranks = budget, ranks
        self._preset = get_preset(family.preset)

    def run(self, stage: str) -> Iterator[Report]:
        """One stage to its end."""
        started = self._budget.spent
        steps = {
            "tokenizer": self._tokenizer,
            "upsampler": self._upsampler,
            "public": self._public,
        }.get(stage) or (lambda: self._private(self._run_named(stage)))
        for progress in steps():
            own = stage if progress.stage == "training" else progress.stage
            yield Report(stage=own, step=progress.step, steps=progress.steps)
            if own == stage:
                self._budget.save()
        self._ranks.wait()
        done = dict(self._budget.plans[stage])
        if stage in self._family.shares:  # how long a private run takes is private, a little
            done["seconds"] = self._budget.spent - started
        yield Report(stage=stage, step=done["steps"], steps=done["steps"], done=done)
        self._budget.save()

    def _run_named(self, name: str) -> PrivateRun:
        return next(run for run in self._family.runs if run.name == name)

    def _seconds(self, stage: str) -> float:
        left = {
            name: share
            for name, share in self._family.stages.items()
            if name == stage or not (self._out / name / "config.json").exists()
        }
        return MARGIN * self._budget.of(stage, left)

    def _planned(self, stage: str, plan: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The plan of a stage: the one that it began with, or a new one."""
        if stage not in self._budget.plans:
            self._budget.plans[stage] = plan()
            self._budget.save()
        return self._budget.plans[stage]

    def _public_steps(
        self, stage: str, rehearse: Callable[[int], Iterator[Progress]], batch: int
    ) -> dict[str, Any]:
        """A plan for a public stage, from a few steps of a copy."""

        def plan() -> dict[str, Any]:
            moments = [time.monotonic() for _ in rehearse(REHEARSED)]
            step = (moments[-1] - moments[1]) / (len(moments) - 2)
            seconds = self._seconds(stage)
            steps = max(REHEARSED, int(self._ranks.agree(seconds / step)))
            return {"steps": steps, "batch": batch, "examples_a_second": batch / step}

        return self._planned(stage, plan)

    def _tokenizer(self) -> Iterator[Progress]:
        size = self._preset.tokenizer.coarse_size
        images_NCHW = yield from self._source.coarse(size)
        settings = self._preset.tokenizer_training

        def rehearse(steps: int) -> Iterator[Progress]:
            short = dataclasses.replace(
                settings, steps=steps, foresee_steps=steps, warmup=1, report_every=1
            )
            tokenizer = new_tokenizer(self._preset.tokenizer)
            return train_tokenizer(tokenizer, images_NCHW[:500], short, self._ranks)

        plan = self._public_steps("tokenizer", rehearse, settings.batch)
        torch.manual_seed(settings.seed)
        tokenizer = new_tokenizer(self._preset.tokenizer)
        foresee_steps = min(settings.foresee_steps, plan["steps"] // 4)
        own: TokenizerTraining = dataclasses.replace(
            settings,
            steps=plan["steps"] - foresee_steps,
            foresee_steps=foresee_steps,
            warmup=min(settings.warmup, plan["steps"] // 4),
        )
        yield from train_tokenizer(tokenizer, images_NCHW, own, self._ranks)
        if self._ranks.leads:
            save_tokenizer(self._out / "tokenizer", tokenizer.cpu())

    def _upsampler(self) -> Iterator[Progress]:
        tokenizer = load_tokenizer(self._out / "tokenizer")
        settings = self._preset.superresolution_training
        size = self._preset.image_size
        images_NCHW = yield from self._source.images(size, settings.images)
        torch.manual_seed(settings.seed)
        model = SuperResolution(self._preset.superresolution)

        def rehearse(steps: int) -> Iterator[Progress]:
            short = dataclasses.replace(settings, steps=steps, warmup=1, report_every=1)
            return train_superresolution(
                copy.deepcopy(model), tokenizer, images_NCHW, short, self._ranks
            )

        plan = self._public_steps("upsampler", rehearse, settings.batch)
        own: SuperResolutionTraining = dataclasses.replace(
            settings, steps=plan["steps"], warmup=min(settings.warmup, plan["steps"] // 4)
        )
        state = self._folder / "upsampler"
        yield from train_superresolution(model, tokenizer, images_NCHW, own, self._ranks, state)
        if self._ranks.leads:
            save_superresolution(self._out / "upsampler", model.cpu())

    def _public(self) -> Iterator[Progress]:
        folder = self._out / "tokenizer"
        tokenizer, encoder = load_tokenizer(folder), self._source.encoder
        examples = yield from self._source.public_examples(tokenizer)
        settings = self._preset.pretraining
        torch.manual_seed(settings.seed)
        model = self._preset.new_model(tokenizer, encoder)
        compiled = self._ranks.device.type == "cuda"

        def rehearse(steps: int) -> Iterator[Progress]:
            short = dataclasses.replace(settings, steps=steps, warmup=1, report_every=1)
            return pretrain(
                copy.deepcopy(model), examples, short, None, self._ranks, compiled=compiled
            )

        plan = self._public_steps("public", rehearse, settings.batch)
        flops = training_flops(model)
        plan |= {"share_of_peak": flops * plan["examples_a_second"] / matrix_flops(self._ranks)}
        steps: int = plan["steps"]
        own: Pretraining = dataclasses.replace(
            settings,
            steps=steps,
            warmup=min(settings.warmup, steps // 4),
            save_every=max(1, min(settings.save_every, steps // 10)),
        )
        state = self._folder / "public"
        yield from pretrain(model, examples, own, state, self._ranks, compiled=compiled)
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

    def _plan_private(self, model: WaveletGPT) -> None:
        """Plan every private run that is left, before any private record is read."""
        left = [run for run in self._family.runs if run.name not in self._budget.plans]
        if not left:
            return
        sizes_B = (self._preset.finetuning.micro_batch, *MICRO_BATCHES[self._ranks.device.type])
        rates = {
            size: self._ranks.agree(
                private_rate(
                    model,
                    dataclasses.replace(self._preset.finetuning, micro_batch=size),
                    self._ranks,
                )
            )
            for size in sizes_B
        }
        micro_batch = max(rates, key=lambda size: rates[size])
        rate = rates[micro_batch]
        public = self._budget.plans.get("public", {}).get("examples_a_second")
        seconds = {run.name: self._seconds(run.name) for run in left}
        for run in left:
            records, delta = self._records_of(run), default_delta(len(self._source.private))
            if (examples := seconds[run.name] * rate) < micro_batch:
                raise ValueError(
                    f"Expected time for more than {examples:.0f} examples of {run.name}, which is "
                    f"not even a micro-batch of {micro_batch}; give more minutes."
                )
            steps, batch = run.sizes(examples, records)
            sizes: dict[str, Any] = {
                "records": records,
                "batch_size": batch,
                "steps": steps,
                "delta": delta,
                "max_grad_norm": MAX_GRAD_NORM,
            }
            plan = (
                PrivacyPlan(**sizes, noise_multiplier=0.0)
                if run.epsilon == math.inf
                else PrivacyPlan.calibrated(**sizes, target_epsilon=run.epsilon)
            )
            self._budget.plans[run.name] = {
                "steps": steps,
                "micro_batch": micro_batch,
                "examples_a_second": rate,
                "private_over_non_private": public and public / rate,
                "plan": dataclasses.asdict(plan),
            }
        self._budget.save()

    def _records_of(self, run: PrivateRun) -> int:
        if run.unit == "image":
            return len(self._source.private)
        return int(self._source.groups(run.unit).max()) + 1

    def _private(self, run: PrivateRun) -> Iterator[Progress]:
        base, source = load_public(self._out / "public"), self._source
        self._plan_private(base.model)
        with self._budget.paused():
            yield from encode_records(source.private, source.encoder, base.tokenizer, source.cache)
        plan, settings = self._budget.plans[run.name], self._preset.finetuning
        planned = PrivacyPlan(**plan["plan"])
        own = dataclasses.replace(
            settings,
            warmup=min(settings.warmup, planned.steps // 4),
            micro_batch=plan["micro_batch"],
        )
        for report in train_private(
            source.private,
            planned,
            out=self._out / run.name,
            folder=self._folder / run.name,
            base=self._out / "public",
            settings=own,
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
