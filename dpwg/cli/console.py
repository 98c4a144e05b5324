"""What a person or a program sees of a verb: progress bars, tables, JSON, kept results."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from dpwg.training.processes import Ranks
    from dpwg.training.progress import Progress


@contextmanager
def progress_bar(title: str, ranks: Ranks | None = None) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of the leading rank, moved by how many are done, and in all."""
    with tqdm(desc=title, unit="", disable=bool(ranks and not ranks.leads)) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def run_counted(done: Iterable[int], total: int, title: str) -> None:
    """Run something that yields how much is done, with a progress bar on standard error."""
    with tqdm(desc=title, total=total, unit="") as bar:
        for number in done:
            bar.update(number - bar.n)


def run_training(
    reports: Iterable[Progress], title: str, ranks: Ranks, *, lines: bool = False
) -> None:
    """Run a training to its end, with the leading rank's progress bar on standard error."""
    from dpwg.privacy.accounting import epsilon_text
    from dpwg.training.memory import keep_freed_memory

    keep_freed_memory()
    shown: dict[str, str] = {}
    with tqdm(desc=title, unit="step", disable=lines or not ranks.leads) as bar:
        for report in reports:
            if lines and ranks.leads:
                print_line({"stage": "training", **asdict(report)})
            bar.total = report.steps
            if report.gradient_norm is None:
                shown = {"loss": f"{report.loss:.4f}"}
            else:
                shown["private loss"] = f"{report.loss:.4f}"
            if report.epsilon is not None:
                shown["epsilon"] = epsilon_text(report.epsilon)
            bar.set_postfix(shown, refresh=False)
            bar.update(report.step - bar.n)


def warn(text: str) -> None:
    """One line on standard error, of what goes on all the same."""
    tqdm.write(f"dpwg: {text}", file=sys.stderr)


def print_line(values: dict[str, Any]) -> None:
    """One line of JSON, at once."""
    print(json.dumps(plain(values), allow_nan=False), flush=True)


def kept(answer: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """The same answer, written to a result file where one is asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain(answer), indent=2, allow_nan=False) + "\n")
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


def table(answer: Any) -> str:
    """A list of dicts as columns, one dict as lines."""
    if isinstance(answer, dict):
        return "\n".join(f"{name}: {_cell(value)}" for name, value in answer.items())
    if not answer:
        return "none"
    rows = [list(answer[0]), *([_cell(v) for v in row.values()] for row in answer)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows)


def _cell(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def listed(value: Any) -> Any:
    """Several values as a line each, for people."""
    if isinstance(value, dict):
        value = tuple(f"{name}: {item}" for name, item in value.items())
    if not isinstance(value, tuple):
        return value
    rows = (", ".join(row) if isinstance(row, tuple) else row for row in value)
    return "".join(f"\n  {row}" for row in rows) or "none"
