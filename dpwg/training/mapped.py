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

_DTYPES = {torch.int64: "I64", torch.bfloat16: "BF16", torch.int16: "I16", torch.bool: "BOOL"}

Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@contextmanager
def filling(path: Path, shapes: Shapes) -> Iterator[dict[str, Tensor]]:
    """Tensors of these dtypes and shapes, zero at first, whose memory is a new file on disk.

    The file gets its name when the block ends, and is removed where it ends by an error, as is what
    a killed process left of it. Only its owner may read it. `safetensors` opens it like any other.
    """
    header, size = _header(shapes)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with open(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(header)
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
        for other in path.parent.glob(f"{path.name}.partial-*"):
            other.unlink(missing_ok=True)
    finally:
        partial.unlink(missing_ok=True)


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
