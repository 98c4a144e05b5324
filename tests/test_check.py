"""`data check`: what is wrong with a data set, before any budget is spent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pictures import plain, rows

from dpwg.cli import main
from dpwg.training.examples import Examples


def picture(shade: int, size: tuple[int, int] = (16, 12)) -> bytes:
    return plain((shade, 40, 80), size=size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six sound records of three persons."""
    rows = []
    for index in range(6):
        (tmp_path / f"{index}.png").write_bytes(picture(20 * index, (16 + index, 12)))
        rows.append({"file_name": f"{index}.png", "text": ["a", "b"][: 1 + index % 2]})
        rows[-1]["person"] = "abbccc"[index]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def check(capsys, folder: Path, *more: str) -> tuple[int, dict]:
    code = main(["data", "check", str(folder), *more, "--json"])
    return code, json.loads(capsys.readouterr().out)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_sound_set_is_told_as_it_is_and_nothing_is_written(
    capsys, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("DPWG_CACHE", str(tmp_path / "cache"))
    before = files(folder)
    code, told = check(capsys, folder, "--unit", "person")
    assert (code, told["wrong"]) == (0, False)
    assert (told["format"], told["records"], told["usable"]) == ("folder", 6, 6)
    assert told["captions"] == {"1": 3, "2": 3}
    assert told["sizes"] == ["16x12", "21x12"]
    assert told["columns"] == ["person"]
    assert (told["groups"], told["group_sizes"]) == (3, {"1": 1, "2": 1, "3": 1})
    assert (told["broken"], told["missing"], told["duplicates"]) == ({}, {}, [])
    assert "private" in told["private"]
    assert files(folder) == before
    assert not (tmp_path / "cache").exists()


def test_everything_wrong_is_named(capsys, folder: Path) -> None:
    (folder / "0.png").write_bytes(picture(0)[:-30])
    (folder / "1.png").unlink()
    (folder / "2.png").write_bytes((folder / "3.png").read_bytes())
    (folder / "6.png").write_bytes(picture(222))
    (folder / "7.png").write_bytes(picture(0))
    with (folder / "metadata.jsonl").open("a") as file:
        file.write("\n" + rows(("6.png", "")))
    code, told = check(capsys, folder)
    assert (code, told["wrong"], told["records"], told["usable"]) == (2, True, 7, 4)
    assert list(told["broken"]) == ["0.png"]
    assert list(told["missing"]) == ["1.png", "6.png"]
    assert told["duplicates"] == [["2.png", "3.png"]]
    assert told["unlisted"] == ["7.png"]
    assert len(told["ways_out"]) == 4
    assert main(["check", str(folder)]) == 2
    text = capsys.readouterr().out
    assert all(named in text for named in ("--skip-broken", "\n  0.png: ", "\n  2.png, 3.png"))


def test_captions_whose_end_is_not_read_are_counted(capsys, folder: Path) -> None:
    with (folder / "metadata.jsonl").open("a") as file:
        file.write("\n" + rows(*(("0.png", "word " * length) for length in (30, 60, 300))))
    code, told = check(capsys, folder)
    assert (code, told["cut_characters"], told["cut_tokens"]) == (0, 1, 2)
    assert len(told["ways_out"]) == 2


def test_a_run_counts_the_captions_that_it_cuts() -> None:
    encoded = {
        "tokens": torch.zeros(45, 8),
        "length": torch.tensor([5, 40]),
        "row": torch.tensor([0, 1, 0]),
        "count": torch.tensor([1, 2]),
        "empty_states": torch.zeros(40, 8),
        "empty_mask": torch.arange(40) < 2,
    }
    examples = Examples(encoded, {"codes_0": torch.zeros(2, 4, 2, dtype=torch.int16)})
    assert (len(examples), examples.cut) == (2, 1)


def test_twins_are_wrong_unless_a_group_holds_them_together(capsys, folder: Path) -> None:
    (folder / "2.png").write_bytes((folder / "1.png").read_bytes())
    assert check(capsys, folder)[0] == 2
    code, told = check(capsys, folder, "--unit", "person")
    assert (code, told["duplicates"], told["wrong"]) == (0, [["1.png", "2.png"]], False)
    assert told["ways_out"] == []
    code, told = check(capsys, folder, "--unit", "patient")
    assert (code, told["groups"], len(told["ungrouped"])) == (2, 0, 6)
    (folder / "3.png").write_bytes((folder / "1.png").read_bytes())
    assert check(capsys, folder, "--unit", "person")[0] == 2


@pytest.mark.parametrize("path", ["no/such/folder", ""])
def test_a_path_without_a_data_set_ends_with_2_and_one_line(capsys, tmp_path, path) -> None:
    assert main(["data", "check", str(tmp_path / path)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert str(tmp_path) in told[0]
