"""What a person or a program sees of a verb: progress bars, tables, JSON, kept results."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tqdm import tqdm

from dpwg.files import whole

if TYPE_CHECKING:
    from dpwg.training.optimizer import Progress
    from dpwg.training.processes import Ranks


class Bars:
    """A progress bar on standard error, begun anew for every stage.

    Of several processes the leading one shows it. There is one bar at a time.
    """

    _bar: ClassVar[Any] = None
    _stage: ClassVar[str] = ""

    def __init__(self, ranks: Ranks | None = None) -> None:
        self._leads = ranks is None or ranks.leads

    def __call__(self, stage: str, done: int, total: int, **facts: Any) -> None:
        """Show how many of a stage are done, and in all."""
        if not self._leads:
            return
        if Bars._bar is None or Bars._stage != stage:
            Bars.close()
            Bars._bar, Bars._stage = tqdm(desc=stage, total=total, unit="", mininterval=0.5), stage
        Bars._bar.total = total
        if facts:
            Bars._bar.set_postfix(facts, refresh=False)
        Bars._bar.update(done - Bars._bar.n)

    @classmethod
    def close(cls) -> None:
        """End the bar of the last stage."""
        if Bars._bar is not None:
            Bars._bar.close()
            Bars._bar = None

    def of(self, stage: str) -> Callable[[int, int], None]:
        """The same for one stage."""
        return lambda done, total: self(stage, done, total)

    def run(self, done: Iterable[int], total: int, stage: str) -> None:
        """Run something that yields how much is done."""
        for number in done:
            self(stage, number, total)

    def train(self, reports: Iterator[Progress], stage: str = "") -> Any:
        """Run a training to its end; what it returns."""
        from dpwg.training.processes import keep_freed_memory

        keep_freed_memory()
        while True:
            try:
                self.show(next(reports), stage)
            except StopIteration as end:
                return end.value

    def show(self, report: Progress, stage: str = "") -> None:
        """One report of a training; `stage` is what its steps are called, or as the report says."""
        from dpwg.privacy.accounting import epsilon_text

        if report.stage != "training":
            self(report.stage, report.step, report.steps)
        else:
            private = report.gradient_norm is not None
            shown = {"private loss" if private else "loss": f"{report.loss:.4f}"}
            if report.epsilon is not None:
                shown["epsilon"] = epsilon_text(report.epsilon)
            self(stage, report.step, report.steps, **shown)


def warn(text: str) -> None:
    """One line on standard error, of what goes on all the same."""
    tqdm.write(f"dpwg: {text}", file=sys.stderr)


def print_line(values: dict[str, Any]) -> None:
    """One line of JSON, at once."""
    print(json.dumps(plain(values), allow_nan=False), flush=True)


def kept(answer: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """The same answer, written to a result file where one is asked for."""
    if path is not None:
        with whole(path) as partial:
            partial.write_text(json.dumps(plain(answer), indent=2, allow_nan=False) + "\n")
    return answer


def plain(value: Any) -> Any:
    """JSON values: numbers that JSON does not know become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def as_table(answer: Any) -> str:
    """A list of dicts as columns, one dict as lines."""
    if isinstance(answer, dict):
        return "\n".join(f"{name}: {_several(value)}" for name, value in answer.items())
    if not answer:
        return "none"
    rows = [list(answer[0]), *([_cell(v) for v in row.values()] for row in answer)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows)


def _several(value: Any) -> str:
    """A cell; several texts a line each."""
    if isinstance(value, dict) and any(isinstance(item, str) for item in value.values()):
        value = [f"{name}: {item}" for name, item in value.items()]
    if isinstance(value, list | tuple) and not any(isinstance(item, int | float) for item in value):
        return "".join(f"\n  {_cell(item)}" for item in value) or "none"
    return _cell(value)


def _cell(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
