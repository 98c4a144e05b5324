"""Safetensors files that are filled in place: what is written is read, nothing is half there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpwg.training.mapped import filling

SHAPES = {
    "mask": (torch.bool, (3, 5)),
    "states": (torch.bfloat16, (3, 5, 2)),
    "none": (torch.int16, (0, 4)),
    "count": (torch.int64, (3,)),
    "codes": (torch.int16, (3, 7)),
}


def test_what_is_filled_in_is_read_by_safetensors(tmp_path: Path) -> None:
    path, generator = tmp_path / "set.safetensors", torch.Generator().manual_seed(0)
    expected = {
        name: torch.randint(2, shape, generator=generator).to(dtype)
        for name, (dtype, shape) in SHAPES.items()
    }
    with filling(path, SHAPES) as tensors:
        assert not path.exists()
        for name, tensor in expected.items():
            for row, value in enumerate(tensor):
                tensors[name][row] = value
    found = load_file(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    save_file(found, tmp_path / "again.safetensors")
    assert path.stat().st_size - (tmp_path / "again.safetensors").stat().st_size in range(-64, 65)
    assert path.stat().st_mode & 0o077 == 0


def test_what_is_not_filled_in_is_zero(tmp_path: Path) -> None:
    with filling(tmp_path / "set", SHAPES):
        pass
    assert not any(tensor.any() for tensor in load_file(tmp_path / "set").values())


def test_an_error_and_a_killed_process_leave_nothing(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / f"set.partial-{ended.pid}").write_bytes(b"begun")
    with pytest.raises(RuntimeError, match="broken"), filling(tmp_path / "set", SHAPES):
        raise RuntimeError("broken")
    assert list(tmp_path.iterdir()) == []


def test_what_a_living_process_began_is_left_to_it(tmp_path: Path) -> None:
    living = tmp_path / f"set.partial-{os.getppid()}"
    living.write_bytes(b"begun")
    with filling(tmp_path / "set", SHAPES):
        pass
    assert living.read_bytes() == b"begun"


def test_a_disk_without_room_is_an_error_and_nothing_stays(tmp_path: Path) -> None:
    huge = {"codes": (torch.int16, (2**50,))}
    with pytest.raises(OSError), filling(tmp_path / "set", huge):  # noqa: PT011
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_processes_finds_the_file_of_the_first(tmp_path: Path) -> None:
    with filling(tmp_path / "set", SHAPES) as tensors:
        tensors["count"].fill_(7)
        (tmp_path / "set").write_bytes(b"of the first")
        for partial in tmp_path.glob("set.partial-*"):
            partial.unlink()
    assert (tmp_path / "set").read_bytes() == b"of the first"
