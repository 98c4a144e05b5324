"""Runs of visitors: a folder and a process of its own each, both for a bounded time.

A run trains as `python -m dpwg finetune` does. Its process is killed by `stop`, at the time limit,
and when nobody waits for its reports; it dies by itself when the server does. The state of its last
finished step stays, and training goes on from there. The folder has an unguessable name, is closed
to other users of the machine, and is known to nobody but the `Run`, which is its visitor's alone.
It lies in the folder of its server (`serving`).
"""

from __future__ import annotations

import atexit
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from dpwg.data.upload import unpack_upload
from dpwg.privacy.accounting import PrivacyPlan
from dpwg.release.folder import find_checkpoint
from dpwg.training.run_state import holds_run
from dpwg.ui.limits import (
    KEPT_SECONDS,
    MAX_RUN_MEGABYTES,
    MAX_RUNS,
    MAX_TRAIN_MINUTES,
    TRAIN_UPLOAD,
)
from dpwg.ui.serving import server_folder

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
POLITENESS = 10
"""How much a run yields to the server, by the system's measure of niceness."""
FRESH_SECONDS = 600
"""How long a measured time is believed: the machine may be busier, or less so, later."""


@dataclass(frozen=True)
class Order:
    """What is to be trained: the public base, the plan, and the epsilon that it was made for."""

    base: str
    plan: PrivacyPlan
    target: float


@dataclass(frozen=True)
class Measured:
    """What a rehearsal on this machine found."""

    micro_batch: int
    seconds_per_micro_batch: float
    trainable_parameters: int


class Run:
    """One visitor's run, from the records to the release. `reports` are private."""

    def __init__(self) -> None:
        self.folder = _new_folder()
        self.order: Order | None = None
        self.reports: list[dict[str, Any]] = []
        self._data: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        atexit.register(self.remove)

    @property
    def running(self) -> bool:
        """Whether it computes something now."""
        return self._process is not None

    @property
    def release(self) -> Path:
        """The folder of what was trained; there when all steps are done."""
        return self.folder / "release"

    @property
    def zipped(self) -> Path | None:
        """The zip of the release, and of nothing else."""
        return next(self.folder.glob("*.zip"), None)

    def take_faces(self, count: int) -> int:
        """Render the first `count` records of faces for this run."""
        for _ in self._lines(["data", "faces-train", "--count", str(count)]):
            pass
        self._data = ["--data", "faces-train", "--count", str(count)]
        return count

    def take_upload(self, files: Sequence[Path]) -> int:
        """Check and unpack an upload for this run; returns how many records it has."""
        folder = self.folder / "your-upload"
        count = unpack_upload(files, folder, TRAIN_UPLOAD)
        self._data = ["--data", str(folder)]
        return count

    def measure(self, order: Order) -> Measured:
        """Rehearse the order's steps on made-up records, unless somebody has a while ago."""
        base = find_checkpoint(order.base)
        when, measured = _measured.get(base, (-math.inf, None))
        if measured is None or time.monotonic() - when > FRESH_SECONDS:
            answer = json.loads("".join(self._lines([*self._finetune(order), "--plan", "--json"])))
            measured = Measured(**{field.name: answer[field.name] for field in fields(Measured)})
            _measured[base] = time.monotonic(), measured
        return measured

    def train(self) -> Iterator[dict[str, Any]]:
        """Reports of `finetune --reports`, from the step after the last one on.

        Ends early when it is stopped. At the end there is a release, and all else is removed.
        """
        if self.order is None:
            raise ValueError("Make a plan first.")
        state = self.folder / "state"
        arguments = ["--run-folder", str(state), "--out", str(self.release), "--save-every", "1"]
        if holds_run(state):
            arguments += ["--resume"]
        for line in self._lines([*self._finetune(self.order), *arguments, "--reports"]):
            report = json.loads(line)
            if report["stage"] == "training":
                self.reports.append(report)
            yield report
        if self.release.exists():
            name = f"dpwg-eps-{self.order.target:g}.zip"
            _zip(self.release, self.folder / name)
            for private in ("state", "cache", "your-upload"):
                shutil.rmtree(self.folder / private, ignore_errors=True)

    def stop(self) -> None:
        """End what is running; the step under way is dropped and was never kept."""
        self._stopped = True
        if process := self._process:
            process.kill()

    def remove(self) -> None:
        """Stop, and leave nothing on the disk."""
        self._stopped = True
        if process := self._process:
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.remove)

    def _finetune(self, order: Order) -> list[str]:
        plan = order.plan
        numbers = {
            "--epsilon": order.target,
            "--delta": plan.delta,
            "--batch": plan.batch_size,
            "--steps": plan.steps,
            "--max-grad-norm": plan.max_grad_norm,
        }
        words = [word for name, value in numbers.items() for word in (name, repr(value))]
        return ["finetune", "--base", order.base, *self._data, *words]

    def _lines(self, arguments: list[str]) -> Iterator[str]:
        """What `python -m dpwg` prints; it is killed when this is closed or takes too long."""
        if self.running:
            raise ValueError("Your last order is still at work; stop it first.")
        self._stopped = False
        started, limit = time.monotonic(), 60.0 * MAX_TRAIN_MINUTES
        process = self._process = _start(arguments, self.folder)
        timer = Timer(limit, process.kill)
        timer.daemon = True
        timer.start()
        assert process.stdout is not None
        try:
            yield from process.stdout
            process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            process.stdout.close()
            self._process = None
        if time.monotonic() - started >= limit:
            raise ValueError(
                f"Stopped at the limit of {MAX_TRAIN_MINUTES} minutes. What was finished is kept: "
                "Start goes on from there."
            )
        if process.returncode and not self._stopped:
            why = "the server's log says why"
            if process.returncode < 0:
                why = f"the server ended it (signal {-process.returncode}), most likely to save "
                why += "memory: lower the batch, or come back later"
            raise ValueError(
                f"The run ended before it was done; {why}. What was finished is kept: Start goes "
                "on from there."
            )


_measured: dict[Path, tuple[float, Measured]] = {}
_creating = Lock()


def _start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """`python -m dpwg` on half of the cores, politely, with its caches in `folder`."""
    paths = [str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "DPWG_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2)),
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "dpwg", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    if hasattr(os, "setpriority"):
        nice = min(19, os.getpriority(os.PRIO_PROCESS, 0) + POLITENESS)
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, process.pid, nice)
    return process


def _new_folder() -> Path:
    """A private folder for a run, if there is room for one more; old ones are removed."""
    root = server_folder() / "runs"
    with _creating:
        root.mkdir(mode=0o700, exist_ok=True)
        oldest = time.time() - KEPT_SECONDS - 60 * MAX_TRAIN_MINUTES
        for folder in root.iterdir():
            with suppress(FileNotFoundError):  # its visitor has just made another plan
                if folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)
        if len(list(root.iterdir())) >= MAX_RUNS:
            raise ValueError(
                f"Expected fewer than {MAX_RUNS} runs on the disk; try again in a few minutes, "
                "when one has been removed."
            )
        if shutil.disk_usage(root).free < MAX_RUN_MEGABYTES * 1_000_000:
            raise ValueError(f"Expected {MAX_RUN_MEGABYTES} MB of free disk; try again later.")
        return Path(tempfile.mkdtemp(dir=root))


def _zip(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:  # weights do not get smaller
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
