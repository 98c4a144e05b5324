"""The generated parts of README.md: tables made from cards and result files, never typed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpwg.privacy.accounting import default_delta, epsilon_text
from dpwg.release.folder import checkpoint_names, describe, find_checkpoint, load_card

RESULTS = Path("docs/results")


def update(readme: Path) -> str:
    """Rewrite what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; returns the text.

    Raises ValueError where a marker names no table.
    """
    folder = readme.parent / RESULTS
    tables = {
        "checkpoints": _checkpoints(
            [_read(path) for path in sorted(folder.glob("held-out*.json"))],
            _read(folder / "colours.json"),
        ),
        "tokenizer": _tokenizer([_read(p) for p in sorted(folder.glob("tokenizer*.json"))]),
        "upsamplers": "\n\n".join(
            _upsamplers(_read(path)) for path in sorted(folder.glob("upsampler*.json"))
        ),
        "bench": _bench([_read(path) for path in sorted(folder.glob("bench-*.json"))]),
        "studio": _studio(_read(folder / "studio.json")),
    }

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name not in tables:
            raise ValueError(f"Expected table {name!r} in {sorted(tables)}.")
        return f"<!-- begin {name} -->\n{tables[name]}\n<!-- end {name} -->"

    pattern = r"<!-- begin (\S+) -->.*?<!-- end \1 -->"
    text = re.sub(pattern, fill, readme.read_text(), flags=re.DOTALL)
    readme.write_text(text)
    return text


def _checkpoints(held_out: Sequence[dict[str, Any]], fidelity: dict[str, Any]) -> str:
    """Each file of `held_out` is of one family, whose gap is between its own best and worst."""
    losses: dict[str, float] = {}
    closed: dict[str, float] = {}
    for measured in held_out:
        own = {row["name"]: row["loss"] for row in measured["nats_per_code"]}
        public = max(own.values())
        reached = public - min(own.values())
        losses |= own
        closed |= {name: (public - loss) / reached for name, loss in own.items() if reached}
    colours = {row["name"]: row["all_parts"] for row in fidelity.get("checkpoints", [])}
    rows = []
    for name in checkpoint_names():
        facts = describe(name)
        loss = losses.get(name)
        rows.append(
            (
                f"`{name}`",
                epsilon_text(facts["epsilon"]),
                f"{facts['delta']:g}" if facts["epsilon"] else "",
                _at_the_usual_delta(name) if facts["epsilon"] else "",
                _figure(facts["noise_multiplier"]),
                _figure(facts["sampling_rate"]),
                str(facts["steps"]),
                f"{facts['records']:,}",
                f"{facts['bytes'] / 1e6:.1f} MB",
                "" if loss is None else f"{loss:.3f}",
                f"{closed[name]:.0%}" if name in closed else "",
                f"{colours[name]:.0%}" if name in colours else "",
            )
        )
    heads = (
        "checkpoint",
        "epsilon (PLD)",
        "delta",
        "at the usual delta",
        "noise",
        "rate",
        "steps",
        "private records",
    )
    return _table((*heads, "size", "held-out nats a code", "gap closed", "all colours right"), rows)


def _at_the_usual_delta(name: str) -> str:
    """What the same steps spend at the delta that `finetune` would take for so many records."""
    card = load_card(find_checkpoint(name))
    delta = default_delta(card.records)
    spent = card.ledger.pld_epsilon(delta)
    return f"{epsilon_text(spent)} ({delta:g})"


def _upsamplers(found: dict[str, Any]) -> str:
    rows = [
        (f"`{row['name']}`", f"{row['psnr']:.2f} dB", f"{row['detail_energy']:.0%}")
        for row in found.get("upsamplers", [])
    ]
    return _table(("upsampler", f"PSNR on `{found.get('data', '')}`", "detail energy"), rows)


def _tokenizer(measured: Sequence[dict[str, Any]]) -> str:
    """One column a file, each of a tokenizer on its family's test set."""
    sizes = list(measured[0]["psnr"]) if measured else []
    rows = [(size, *(f"{one['psnr'][size]:.2f} dB" for one in measured)) for size in sizes]
    return _table(("decoded", *(f"PSNR on `{one['data']}`" for one in measured)), rows)


def _bench(runs: Sequence[dict[str, Any]]) -> str:
    """One column a run: seconds of an example over each other, then what a second brings."""
    ratios = {
        "private step over non-private, all parameters": "private_over_nonprivate",
        "private LoRA step over non-private LoRA": "private_lora_over_nonprivate_lora",
        "Opacus, ghost clipping, over ours": "opacus_ghost_over_private",
        "Opacus, hooks, over ours": "opacus_hooks_over_private",
        "peak memory, private over non-private": "private_memory_over_nonprivate",
    }
    rows = [(text, *(f"{run[name]:.2f}" for run in runs)) for text, name in ratios.items()]
    rates = {"non-private": "nonprivate", "private": "private", "private LoRA": "private_lora"}
    for text, name in rates.items():
        figures = (f"{run['examples_per_second'][name]:.0f}" for run in runs)
        rows.append((f"examples a second, {text}", *figures))
    precisions = [run["settings"]["precision"] for run in runs]
    if len(set(precisions)) < len(precisions):
        raise ValueError(
            f"Expected one bench-*.json of each precision in {RESULTS}, found {precisions}; name "
            "each file by its own."
        )
    return _table(("measured", *precisions), rows)


def _studio(found: dict[str, Any]) -> str:
    first = found.get("first_load", {})
    rows = [
        (
            name,
            f"{first[name]:.1f} s" if name in first else "",
            f"{seconds:.1f} s",
            f"{found['bars'][name]:g} s",
        )
        for name, seconds in found.get("seconds", {}).items()
    ]
    return _table(("from the click to what it asks for", "first", "slowest after", "bar"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return values
