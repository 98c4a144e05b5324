"""What a visitor's run does in a process of its own, which ends when the server does."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from dpwg.data import Record, Records, open_records
from dpwg.data.faces import face
from dpwg.release.folder import load_public
from dpwg.training.cost import Rehearsal, rehearse
from dpwg.training.optimizer import Progress
from dpwg.training.private import Finetuning
from dpwg.training.processes import keep_freed_memory
from dpwg.training.recipe import Note, Trained, train_private
from dpwg.ui.plans import Order

POLITENESS = 10
"""How much a run yields to the server, by the system's measure of niceness."""
STATE, CACHE, RELEASE, UPLOAD = "state", "cache", "release", "your-upload"
"""What lies in a run's folder."""
EVERY_STEP = Finetuning(save_every=1)


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


def measure(order: Order) -> Iterator[Rehearsal]:
    """Rehearse an order's steps on made-up records."""
    yield rehearse(load_public(order.base).model, order.plan, EVERY_STEP)


def train(order: Order, faces: int | None, folder: Path) -> Iterator[Progress | Note | Trained]:
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
