"""What training costs on this device, measured on made-up records."""

from __future__ import annotations

import copy
import dataclasses
import sys
import time
from dataclasses import dataclass

import torch

from dpwg.method.generator import Generator
from dpwg.privacy.accounting import PrivacyPlan
from dpwg.training.examples import Examples
from dpwg.training.private import Finetuning, PrivateTraining
from dpwg.training.processes import Ranks

MICRO_BATCHES = 3
"""That the rehearsed steps have."""


def private_rate(model: Generator, settings: Finetuning, ranks: Ranks) -> float:
    """Examples a second of a private step, all processes together, on made-up records."""
    plan = PrivacyPlan(
        records=settings.micro_batch,
        batch_size=settings.micro_batch,
        steps=2,
        delta=1e-9,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    told = rehearse(model, plan, settings, ranks)
    return settings.micro_batch * ranks.world / told.seconds_per_micro_batch


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Seconds of a micro-batch, which is computed whole however few records it holds, and of a
    step of the expected batch; `peak_bytes` is this process's, resident or GPU; None on Windows.
    """

    parameters: int
    trainable_parameters: int
    micro_batch: int
    precision: str
    seconds_per_micro_batch: float
    seconds_per_step: float
    hours: float
    peak_bytes: int | None


def rehearse(
    model: Generator, plan: PrivacyPlan, settings: Finetuning, ranks: Ranks | None = None
) -> Rehearsal:
    """Take two real steps on random codes and captions, and scale the second to a step of the plan.

    The model is left as it is, and no record of any data set is read.
    """
    ranks = ranks or Ranks()
    records = settings.micro_batch * MICRO_BATCHES * ranks.world
    short = dataclasses.replace(plan, records=records, batch_size=records, steps=2, delta=1e-9)
    worker = copy.deepcopy(model)
    training = PrivateTraining(worker, _made_up(model, records), short, settings, ranks=ranks)
    trainable = sum(p.numel() for p in worker.parameters() if p.requires_grad)
    steps = training.run()
    next(steps)
    started = time.perf_counter()
    next(steps)
    seconds = (time.perf_counter() - started) / MICRO_BATCHES
    own = -(-plan.batch_size // (settings.micro_batch * ranks.world))
    return Rehearsal(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable_parameters=trainable,
        micro_batch=settings.micro_batch,
        precision=training.settings.precision,
        seconds_per_micro_batch=seconds,
        seconds_per_step=seconds * own,
        hours=seconds * own * plan.steps / 3600,
        peak_bytes=_peak_bytes(ranks.device),
    )


def _made_up(model: Generator, records: int) -> Examples:
    config, generator = model.config, torch.Generator().manual_seed(0)
    states_NLD = torch.randn(
        (records, config.text_tokens, config.text_width), generator=generator
    ).bfloat16()
    mask_NL = torch.ones(records, config.text_tokens, dtype=torch.bool)
    captions = {
        "states": states_NLD,
        "mask": mask_NL,
        "count": torch.ones(records, dtype=torch.int64),
        "empty_states": states_NLD[0],
        "empty_mask": mask_NL[0],
    }
    made_up = model.random_codes(records, generator)
    codes = {f"codes_{number}": part for number, part in enumerate(made_up)}
    return Examples(captions, codes)


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
