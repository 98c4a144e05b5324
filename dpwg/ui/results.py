"""What was measured on the checkpoints, read from the result files that come with the code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from dpwg.measure.membership import MembershipAttack, result_file
from dpwg.privacy.card import PrivacyCard
from dpwg.release.folder import find_checkpoint, named_weights_sha256

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results"
MEMBERSHIP, ENGINE = "membership", "audit-engine.json"


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
    if files := [json.loads(path.read_text()) for path in sorted(folder.glob("held-out*.json"))]:
        rows = [row for facts in files for row in facts["nats_per_code"]]
        sets = " and ".join(f"{facts['records']:,} records of `{facts['data']}`" for facts in files)
        points = tuple(Point(row["name"], row["epsilon"], row["loss"]) for row in rows)
        source = f"Held-out per-code NLL on {sets}, lower is better: `python -m dpwg evaluate`."
        found.append(Measure("held-out loss", "nats a code", points, source))
    if (path := folder / "colours.json").exists():
        facts = json.loads(path.read_text())
        rows = facts["checkpoints"]
        points = tuple(Point(r["name"], r["epsilon"], 100 * r["all_parts"]) for r in rows)
        source = (
            f"Pictures of {rows[0]['captions']:,} captions of `{facts['data']}` that have every "
            "judged colour of their caption, higher is better; the records' own codes reach "
            f"{100 * facts['own_codes']['all_parts']:.1f} %{_chosen(rows)}: "
            f"`python -m dpwg evaluate --colours {rows[0]['captions']}`."
        )
        found.append(Measure("all colours right", "% of pictures", points, source))
    return found


def _chosen(rows: list[dict[str, Any]]) -> str:
    """That the measured pictures were chosen among candidates: Compare draws one of each."""
    several = " or ".join(map(str, sorted({row["candidates"] for row in rows})))
    chosen = f"; a reranker chose each from {several} candidates, where this tab draws one"
    return chosen if several != "1" else ""


def membership_result(name: str, card: PrivacyCard, folder: Path = FOLDER) -> MembershipAttack:
    """The stored attack on a checkpoint's weights; ValueError, in words, where there is none."""
    path = folder / MEMBERSHIP / result_file(name)
    if not path.exists():
        raise ValueError(f"{name} was not measured yet.")
    attack = MembershipAttack.from_json(json.loads(path.read_text()))
    now = (name, named_weights_sha256(find_checkpoint(name)), card.epsilon, card.delta)
    if (attack.checkpoint, attack.weights, attack.epsilon, attack.delta) != now:
        raise ValueError(f"The stored result is not of the weights that {name} has now.")
    return attack


def engine_runs(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The audit of the private engine, as `python -m dpwg audit` wrote it: one run a ledger."""
    path = folder / ENGINE
    return list(json.loads(path.read_text())["runs"]) if path.exists() else []
