"""Runs of visitors: a folder and a process of its own each, both for a bounded time.

The process is killed by `stop`, at the time limit, and when nobody waits for its reports. The state
of its last finished step stays, and training goes on from there. The folder lies in that of the
server, has an unguessable name, and is known to nobody but the `Run`, which is its visitor's alone.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from dpwg.data import Record, Records, open_records
from dpwg.data.faces import face
from dpwg.data.upload import unpack_upload
from dpwg.files import whole
from dpwg.release.folder import load_public
from dpwg.training.cost import Rehearsal, rehearse
from dpwg.training.optimizer import Progress
from dpwg.training.private import Finetuning
from dpwg.training.processes import keep_freed_memory
from dpwg.training.recipe import Note, Trained, train_private
from dpwg.ui import limits
from dpwg.ui.plans import Order
from dpwg.ui.serving import server_folder

POLITENESS = 10
"""How much a run yields to the server, by the system's measure of niceness."""
STATE, CACHE, RELEASE, UPLOAD = "state", "cache", "release", "your-upload"
"""What lies in a run's folder."""
EVERY_STEP = Finetuning(save_every=1)
FRESH_SECONDS = 600
"""How long a measured time is believed: the machine may be busier, or less so, later."""

_measured: dict[str, tuple[float, Rehearsal]] = {}
_creating = Lock()


class Faces:
    """Records of a split of faces, rendered when they are first asked for."""

    def __init__(self, split: str, indices: Sequence[int]) -> None:
        self.name, self._indices = f"faces-{split}", indices
        self.digest = hashlib.sha256(f"{split} {list(indices)}".encode()).hexdigest()
        self._face = functools.cache(functools.partial(face, split))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._face(self._indices[index])


def report(sender: Connection, task: Callable[..., Iterator[Any]], inputs: tuple[Any, ...]) -> None:
    """Do a task politely, on half of the cores, and send what it yields."""
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(POLITENESS)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    keep_freed_memory()
    for item in task(*inputs):
        sender.send(item)


def rehearse_order(order: Order) -> Iterator[Rehearsal]:
    """Rehearse an order's steps on made-up records."""
    yield rehearse(load_public(order.base).model, order.plan, EVERY_STEP)


def train_order(
    order: Order, faces: int | None, folder: Path
) -> Iterator[Progress | Note | Trained]:
    """Train on so many faces or else on the upload in a run's folder, from the last step on."""
    records: Records = (
        open_records(str(folder / UPLOAD)) if faces is None else Faces("train", range(faces))
    )
    yield from train_private(
        records,
        order.plan,
        base=order.base,
        settings=EVERY_STEP,
        called=records.name,
        target_epsilon=order.target,
        folder=folder / STATE,
        cache=folder / CACHE,
        out=folder / RELEASE,
    )


def _end_with_the_server() -> None:
    if server := parent_process():
        server.join()
        os._exit(1)


class Run:
    """One visitor's run, from the records to the release. `reports` are private."""

    def __init__(self) -> None:
        self.folder = _new_folder()
        self.order: Order | None = None
        self.reports: list[Progress] = []
        self.faces: int | None = None
        """How many of faces it takes, where it has no upload."""
        self._upload: tuple[tuple[str, ...], int] | None = None
        self._process: BaseProcess | None = None
        self._stopped = False

    @property
    def running(self) -> bool:
        """Whether it computes something now."""
        return self._process is not None

    @property
    def release(self) -> Path:
        """The folder of what was trained; there when all steps are done."""
        return self.folder / RELEASE

    @property
    def zipped(self) -> Path | None:
        """The zip of the release, and of nothing else."""
        return next(self.folder.glob("*.zip"), None)

    def take_upload(self, files: Sequence[str], previous: Run | None = None) -> int:
        """Check and unpack an upload for this run and remove the files; how many records it has.

        Files that an earlier run has read are taken from that.
        """
        kept, folder = tuple(files), self.folder / UPLOAD
        if previous and previous._upload and previous._upload[0] == kept and not previous.zipped:
            (previous.folder / UPLOAD).rename(folder)
            self._upload, previous._upload = previous._upload, None
            return self._upload[1]
        paths = [Path(file) for file in files]
        if not all(path.is_file() for path in paths):
            raise ValueError("These files were read and removed; choose them again.")
        try:
            self._upload = kept, unpack_upload(paths, folder, limits.TRAIN_UPLOAD)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)
        return self._upload[1]

    def measure(self, order: Order) -> Rehearsal:
        """Rehearse the order's steps on made-up records, unless somebody has a while ago."""
        when, measured = _measured.get(order.base, (-math.inf, None))
        if measured is None or time.monotonic() - when > FRESH_SECONDS:
            (measured,) = self._work(rehearse_order, order)
            _measured[order.base] = time.monotonic(), measured
        return measured

    def train(self) -> Iterator[Progress | Note]:
        """Take the steps after the last one that was finished; a report each, and while encoding.

        Ends early when it is stopped. At the end there is a release, and all else is removed.
        """
        assert self.order is not None
        for done in self._work(train_order, self.order, self.faces, self.folder):
            if isinstance(done, Trained):
                _zip(self.release, self.folder / f"dpwg-eps-{self.order.target:g}.zip")
                for private in (STATE, CACHE, UPLOAD):
                    shutil.rmtree(self.folder / private, ignore_errors=True)
                return
            if isinstance(done, Progress) and done.stage == "training":
                self.reports.append(done)
            yield done

    def stop(self) -> None:
        """End what is running; the step under way is dropped and was never kept."""
        self._stopped = True
        if process := self._process:
            process.kill()
            process.join()

    def remove(self) -> None:
        """Stop, and leave nothing on the disk."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _work(self, task: Callable[..., Iterator[Any]], *inputs: Any) -> Iterator[Any]:
        """What a task yields in a process, which is killed when this is closed or takes too long.

        Raises ValueError in words where it takes too long, or ends before it is done.
        """
        if self.running:
            raise ValueError("Your last order is still at work; stop it first.")
        self._stopped = late = False
        deadline = time.monotonic() + 60 * limits.MAX_TRAIN_MINUTES
        spawn = get_context("spawn")
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=report, args=(sender, task, inputs), daemon=True)
        process.start()
        sender.close()
        self._process = process
        try:
            with suppress(EOFError, BrokenPipeError):
                while receiver.poll(max(0.0, deadline - time.monotonic())):
                    yield receiver.recv()
                late = True
            if not late:
                process.join()  # it ends by itself
        finally:
            process.kill()
            process.join()
            receiver.close()
            self._process = None
        if late:
            why = f"{limits.MAX_TRAIN_MINUTES} minutes, the limit, are over"
        elif process.exitcode and process.exitcode < 0:
            why = "the server ended it, most likely to save memory: lower the batch"
        else:
            why = "the server's log says why"
        if process.exitcode and not self._stopped:
            raise ValueError(
                f"The run ended before it was done: {why}. What was finished is kept, and Start "
                "goes on from there."
            )


def _new_folder() -> Path:
    """A private folder for a run, if there is room for one more; old ones are removed."""
    root = server_folder() / "runs"
    with _creating:
        root.mkdir(mode=0o700, exist_ok=True)
        oldest = time.time() - limits.KEPT_SECONDS - 60 * limits.MAX_TRAIN_MINUTES
        for folder in root.iterdir():
            with suppress(FileNotFoundError):  # its visitor has just made another plan
                if folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)
        if len(list(root.iterdir())) >= limits.MAX_RUNS:
            raise ValueError(
                f"All {limits.MAX_RUNS} places for runs are taken; try again in a few "
                "minutes, when one has been removed."
            )
        if shutil.disk_usage(root).free < limits.MAX_RUN_MEGABYTES * 1_000_000:
            raise ValueError("The server's disk is full; try again later.")
        return Path(tempfile.mkdtemp(dir=root))


def _zip(folder: Path, path: Path) -> None:
    with whole(path, private=True) as partial, zipfile.ZipFile(partial, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
