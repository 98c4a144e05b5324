"""The lesson runs from top to bottom, on the shipped checkpoints."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import matplotlib
import pytest

LESSON = Path(__file__).resolve().parent.parent / "examples" / "lesson.ipynb"


def cells(kind: str) -> list[str]:
    notebook = json.loads(LESSON.read_text())
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind]


def test_every_cell_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    matplotlib.use("Agg")
    monkeypatch.chdir(LESSON.parent)
    monkeypatch.delenv("DPWG_CHECKPOINTS", raising=False)
    started, names = time.monotonic(), {"__name__": "__main__"}
    for source in cells("code"):
        exec(compile(source, LESSON.name, "exec"), names)
    assert time.monotonic() - started < 300
    said = capsys.readouterr().out
    moved = float(re.search(r"the sum moves by ([\d.]+)", said)[1])
    assert moved <= 1.0
    verdicts = re.findall(r": (REFUTED|not refuted)", said)
    assert verdicts == ["not refuted", "not refuted", "REFUTED"]
    assert "epsilon = log of their ratio = 1.0" in said or "= 1.1" in said


def test_every_exercise_has_an_answer() -> None:
    lesson, _, answers = "\n".join(cells("markdown")).partition("## Answers")
    asked = {int(n) for n in re.findall(r"^(\d+)\. ", lesson, re.M)}
    answered = {int(n) for n in re.findall(r"^(\d+)\. ", answers, re.M)}
    assert asked == answered == set(range(1, 15))


def test_the_lesson_is_committed_without_output() -> None:
    notebook = json.loads(LESSON.read_text())
    assert not any(c.get("outputs") or c.get("execution_count") for c in notebook["cells"])
