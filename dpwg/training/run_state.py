"""The private folder of a run: its last state, the steps that were begun, and a lock.

A state is one file, `state`, in the safetensors format with everything else in its metadata: whole
or not there, and bound together by a digest. `begun` counts the steps of a private run that were
ever begun, before each uses its batch: a run that was ended and resumed has begun more than the
ledger of its weights can tell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dpwg.files import private_folder, whole

STATE, BEGUN, LOCK = "state", "begun", "lock"


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers."""
    return _digest(module.state_dict())


def holds_run(folder: Path) -> bool:
    """Whether a run was begun in a folder."""
    return (folder / STATE).exists() or (folder / BEGUN).exists()


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Nobody else runs in the folder meanwhile; ValueError where somebody does."""
    if folder is None:
        yield
        return
    lock = FileLock(private_folder(folder) / LOCK, timeout=0, mode=0o600, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"Expected the run folder {folder} to be free, but another process is training in it; "
            "wait for it or stop it, or name another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def count_begun(folder: Path, steps: int, run: dict[str, Any]) -> None:
    """Say on the disk that so many of a run's steps were begun, before the last uses its batch."""
    private_folder(folder)
    with whole(folder / BEGUN, private=True) as partial:
        partial.write_text(json.dumps({"steps": steps, "run": run}))


def steps_begun(folder: Path, run: dict[str, Any] | None = None) -> int:
    """How many steps were ever begun in a run's folder; ValueError for those of another `run`."""
    if not (folder / BEGUN).exists():
        return 0
    begun = json.loads((folder / BEGUN).read_text())
    if run is not None:
        _check_same(folder, begun["run"], run)
    return int(begun["steps"])


def save_state(folder: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write a state in place of the one before: whoever is killed leaves that one or this one."""
    private_folder(folder)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(values)
    with whole(folder / STATE, private=True) as partial:
        save_file(held, partial, metadata={"values": text, "digest": _digest(held, text)})


def load_state(
    folder: Path, run: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The last state of a run and its values, or None where none was saved.

    Raises ValueError where it is damaged, or where one of its values is another than in `run`.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata()
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        text = facts["values"]
        whole_file = facts["digest"] == _digest(tensors, text)
    except (SafetensorError, KeyError, TypeError):
        whole_file = False
    if not whole_file:
        raise ValueError(f"Expected a whole state in {path}, found damage; begin the run again.")
    values: dict[str, Any] = json.loads(text)
    _check_same(folder, values, run)
    return tensors, values


def _check_same(folder: Path, saved: dict[str, Any], run: dict[str, Any]) -> None:
    for name, value in run.items():
        if saved.get(name) != value:
            raise ValueError(
                f"Expected the {name} of the run in {folder} to be {value}, found "
                f"{saved.get(name)}; resume with that, or take another folder."
            )


def _digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors) if text else tensors:
        digest.update(name.encode())
        own = tensors[name].detach().cpu().contiguous()
        digest.update(own.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
