"""Files that appear whole or not at all, and that nobody else can read where they are private."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ABANDONED = 3600.0
"""Seconds after which what another process began to write is taken for left behind."""


@contextmanager
def whole(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A place to write a file or a folder, which takes the name `path` when the block ends.

    It then replaces what was there; a block that fails leaves that as it was. Whatever the umask
    is, files end as 0600 in folders of 0700 where they are private, as 0644 and 0755 where not; on
    the way there only the folder around keeps them private.
    What a killed process left behind under that name is removed after an hour.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = f".{path.name}.partial-"
    partial = path.with_name(f"{begun}{os.getpid()}")
    remove(partial)
    try:
        yield partial
        for made in (partial, *partial.rglob("*")):
            mode = 0o755 if made.is_dir() else 0o644
            made.chmod(mode & 0o700 if private else mode)
            _flush(made)
        if path.is_dir():  # a folder with files in it cannot be renamed over
            shutil.rmtree(path)
        partial.replace(path)
        _flush(path.parent)
    finally:
        remove(partial)
    for other in path.parent.glob(f"{begun}*"):
        if other.stat().st_mtime < time.time() - ABANDONED:
            remove(other)


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner reads and that git does not take.

    Raises ValueError where it has a `.gitignore` of its own: then it is for other things.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    ignored = path / ".gitignore"
    if ignored.exists() and ignored.read_text() != "*\n":
        raise ValueError(
            f"Expected a folder for private files alone, found a .gitignore of its own in {path}; "
            "name another folder."
        )
    path.chmod(0o700)
    ignored.write_text("*\n")
    ignored.chmod(0o600)
    return path


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # which opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
