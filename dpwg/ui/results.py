"""What was measured on the checkpoints, read from the result files that come with the code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results"


class Point(NamedTuple):
    """One checkpoint's value; epsilon None is no bound."""

    name: str
    epsilon: float | None
    value: float


class Measure(NamedTuple):
    """One quantity for several checkpoints, with where it comes from."""

    title: str
    unit: str
    points: tuple[Point, ...]
    source: str


def measures(folder: Path = FOLDER) -> list[Measure]:
    """Every measure that has a result file in `folder`; none where the package is used alone."""
    found = []
    if (path := folder / "held-out.json").exists():
        facts = json.loads(path.read_text())
        rows = facts["nats_per_code"]
        points = tuple(Point(row["name"], row["epsilon"], row["loss"]) for row in rows)
        source = (
            f"Held-out loss on {facts['records']:,} records of `{facts['data']}`, lower is better: "
            f"`python -m dpwg evaluate`, in `docs/results/{path.name}`."
        )
        found.append(Measure("held-out loss", "nats a code", points, source))
    return found
