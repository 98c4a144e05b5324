"""A private run that is killed, by a signal or before any line, goes on from a whole state."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import killed_before_line
from safetensors.torch import load
from torch import Tensor

from dpwg.method.transformer import WaveletGPT
from dpwg.privacy.accounting import Ledger, PrivacyPlan
from dpwg.training import run_state
from dpwg.training.examples import Examples
from dpwg.training.private import Finetuning, PrivateTraining
from dpwg.training.run_state import load_state, save_state

PLAN = PrivacyPlan(
    records=12, batch_size=6, steps=24, delta=1e-3, noise_multiplier=50.0, max_grad_norm=0.1
)
FULL = Finetuning(
    precision="float32", micro_batch=4, save_every=1, warmup=2, learning_rate=1e-3, lora_rank=0
)
LORA = dataclasses.replace(FULL, lora_rank=2)

# A child is a fork of a process that has all of this imported: it trains within milliseconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["pytest", "torch._dynamo", "dpwg.training.private"])


class SeededSteps(PrivateTraining):
    """Every step has a generator of its own, so that a step that is taken again is the same."""

    def _sum_clipped(self) -> Tensor:
        self._generator = np.random.Generator(np.random.Philox(key=self._weights.steps))
        return super()._sum_clipped()


def train(
    model: WaveletGPT, examples: Examples, settings: Finetuning, folder: Path, gate: Path, end: Path
) -> None:
    """Train to the end, which is not before there is a gate to it; every step is kept."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = copy.deepcopy(model)  # it is in the memory of all processes
    Ledger.pld_epsilon = lambda self, delta: 0.0  # takes longer than a step, and has its own tests
    training = SeededSteps(model, examples, PLAN, settings, folder)
    steps = {}
    for report in training.run():
        steps[report.step] = flat(training._weights.state())
        while report.step == PLAN.steps - 1 and not gate.exists():
            time.sleep(0.001)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.save({"steps": steps, "weights": weights, "ledger": training.ledger.to_json()}, end)


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([state[name].flatten().double() for name in sorted(state)])


def saved_step(folder: Path) -> int:
    """Of the state that is there now, though it may be replaced while it is read."""
    state = folder / "state"
    return int(load(state.read_bytes())["steps"]) if state.exists() else 0


class Runs:
    """Processes that train in one folder, one after the other, and one that nothing interrupts."""

    def __init__(
        self, model: WaveletGPT, examples: Examples, settings: Finetuning, at: Path
    ) -> None:
        self.given, self.at, self.folder = (model, examples, settings), at, at / "killed"
        (at / "open").touch()
        self.whole = self.to_the_end(at / "whole")

    def start(self, folder: Path, gate: str) -> Any:
        given = (*self.given, folder, self.at / gate, self.at / "end.pt")
        process = processes.Process(target=train, args=given, daemon=True)
        process.start()
        return process

    def to_the_end(self, folder: Path) -> dict[str, Any]:
        process = self.start(folder, "open")
        process.join(timeout=600)
        assert process.exitcode == 0
        return torch.load(self.at / "end.pt")

    def kill(self, at_step: int, delay: float) -> None:
        """Start, and kill -9 a moment after that step is saved."""
        process = self.start(self.folder, "closed")
        while saved_step(self.folder) < at_step:
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL


def check_kills(runs: Runs, kills: int) -> None:
    """Kill a run that often and let it end: as if nothing had happened, at every step of it."""
    moments, reached = random.Random(kills), 0
    for kill in range(kills):
        at_step = kill * (PLAN.steps - 4) // kills
        runs.kill(at_step, delay=moments.uniform(0, 0.03))
        saved = load_state(runs.folder, {})
        assert saved is not None or at_step == 0
        if saved is not None:
            tensors, values = saved
            step, ledger = int(tensors["steps"]), Ledger.from_json(values["ledger"])
            assert max(reached, at_step) <= step == ledger.steps
            assert torch.equal(flat(tensors), runs.whole["steps"][step])
            reached = step
    end = runs.to_the_end(runs.folder)
    assert torch.equal(end["weights"], runs.whole["weights"])
    (entry,) = end["ledger"]
    assert 0 <= entry.pop("lost", 0) <= kills
    assert entry == {"sampling_rate": 0.5, "noise_multiplier": 50.0, "steps": PLAN.steps}
    assert min(end["steps"]) == reached + 1
    left = {path.name for path in runs.folder.iterdir() if ".partial-" not in path.name}
    assert left == {".gitignore", "begun", "state"}


@pytest.fixture(scope="module")
def examples(make_examples) -> Examples:
    return make_examples((2,) * PLAN.records)


def test_a_run_killed_three_times_ends_as_one_never_killed(tmp_path, make_model, examples) -> None:
    check_kills(Runs(make_model(), examples, FULL, tmp_path), 3)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [FULL, LORA], ids=["full", "lora"])
def test_a_run_killed_twenty_times_ends_as_one_never_killed(
    tmp_path, make_model, examples, settings
) -> None:
    check_kills(Runs(make_model(), examples, settings, tmp_path), 20)


def save(folder: Path, step: int) -> None:
    save_state(folder, {"a": torch.full((3,), float(step))}, {"step": step})


def loaded(folder: Path) -> int:
    tensors, values = load_state(folder, {}) or ({"a": torch.zeros(3)}, {"step": 0})
    assert tensors["a"].tolist() == [values["step"]] * 3
    return values["step"]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_state_killed_before_any_line_is_the_one_before_or_this_one(
    tmp_path: Path, monkeypatch, step: int
) -> None:
    found = set()
    for line in itertools.count():
        folder = tmp_path / str(line)
        for earlier in range(1, step):
            save(folder, earlier)
        killed = killed_before_line(line, run_state, functools.partial(save, folder, step))
        found.add(loaded(folder))
        with monkeypatch.context() as patched:  # who resumes is another process
            patched.setattr(os, "getpid", lambda: 0)
            save(folder, step)
        assert loaded(folder) == step
        shutil.rmtree(folder)
        if not killed:
            break
    assert line > 10
    assert found == {step - 1, step}
