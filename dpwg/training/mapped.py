"""Safetensors files that are filled piece by piece, for tensors that are larger than memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

_DTYPES = {
    torch.int64: "I64",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@contextmanager
def filling(path: Path, shapes: Shapes) -> Iterator[dict[str, Tensor]]:
    """Tensors of these dtypes and shapes, zero at first, whose memory is a new file on disk.

    The file gets its name when the block ends, and is removed where it ends by an error; what a
    killed process left of it is removed first. Only its owner may read it. `safetensors` opens it
    like any other. Raises OSError where the disk has no room for it.
    """
    header, size = _header(shapes)
    _remove_dead(path)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with open(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(header)
            file.flush()
            if hasattr(os, "posix_fallocate"):  # a mapped file that finds no room kills its process
                os.posix_fallocate(file.fileno(), 0, len(header) + size)
            file.truncate(len(header) + size)
            whole = torch.from_file(
                str(partial), shared=True, size=len(header) + size, dtype=torch.uint8
            )
            yield _views(whole[len(header) :], shapes)
            os.fsync(file.fileno())
        try:
            partial.rename(path)
        except FileNotFoundError:
            if not path.exists():  # else another process was first, with the same content
                raise
    finally:
        partial.unlink(missing_ok=True)


def _remove_dead(path: Path) -> None:
    """Remove what processes of this machine began under this name and did not live to finish."""
    for partial in path.parent.glob(f"{path.name}.partial-*"):
        try:
            os.kill(int(partial.name.rpartition("-")[2]), 0)
        except ProcessLookupError:
            partial.unlink(missing_ok=True)
        except PermissionError:
            continue  # somebody else's, and alive


def _ordered(shapes: Shapes) -> Iterator[tuple[str, torch.dtype, tuple[int, ...], int, int]]:
    """Name, dtype, shape, and the bytes where each begins and ends: the widest first, as aligned
    tensors must lie.
    """
    end = 0
    for name, (dtype, shape) in sorted(shapes.items(), key=lambda item: -item[1][0].itemsize):
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        yield name, dtype, shape, begin, end


def _header(shapes: Shapes) -> tuple[bytes, int]:
    """What stands before the tensors, a multiple of 8 bytes, and how many bytes follow."""
    entries, size = {}, 0
    for name, dtype, shape, begin, end in _ordered(shapes):
        entries[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": (begin, end)}
        size = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, size


def _views(data: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    return {
        name: data[begin:end].view(dtype).view(shape)
        for name, dtype, shape, begin, end in _ordered(shapes)
    }
