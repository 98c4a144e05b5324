"""Training state on disk: whole or not there, never half-written. It is private; see `finetune`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers, in float32."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def check_same_run(folder: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ValueError unless a saved run was begun as this one is."""
    for name, value in now.items():
        if saved.get(name) != value:
            raise ValueError(
                f"Expected the {name} of the run in {folder} to be {value}, found "
                f"{saved.get(name)}; resume with that, or take another folder."
            )


def keep_private(folder: Path) -> None:
    """Make a folder that git does not take: what is in it was computed from records."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ignored = folder / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n")
    elif ignored.read_text() != "*\n":
        raise ValueError(
            f"Expected a folder for private files alone, found a .gitignore of its own in {folder};"
            " name another folder."
        )


def save_state(folder: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write the state of a step, then make it the latest; older ones are removed.

    The latest state is named by the file `latest`, replaced in one operation, so that a run killed
    at any moment resumes from the state before or from this one.
    """
    state = folder / f"step-{step:06d}"
    keep_private(folder)
    partial = folder / f"partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, partial / "tensors.safetensors"
    )
    (partial / "values.json").write_text(json.dumps(values, indent=1))
    for file in partial.iterdir():
        _flush(file)
    shutil.rmtree(state, ignore_errors=True)
    partial.rename(state)
    pointer = folder / f"latest-{os.getpid()}"
    pointer.write_text(state.name)
    _flush(pointer)
    pointer.replace(folder / "latest")
    for other in (*folder.glob("step-*"), *folder.glob("partial-*")):
        if other != state:
            shutil.rmtree(other, ignore_errors=True)
    for other in folder.glob("latest-*"):
        other.unlink(missing_ok=True)


def _flush(file: Path) -> None:
    with file.open("rb") as written:
        os.fsync(written.fileno())


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The latest state of a run, or None where none was saved."""
    if not (folder / "latest").exists():
        return None
    state = folder / (folder / "latest").read_text()
    values: dict[str, Any] = json.loads((state / "values.json").read_text())
    return load_file(state / "tensors.safetensors"), values
