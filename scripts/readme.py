"""The tables of README.md and docs/: made from cards and result files, never typed.

    python -m scripts.readme

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpwg.modules import SHIPPED
from dpwg.privacy.accounting import default_delta, epsilon_text
from dpwg.release.folder import checkpoint_names, describe, load_card

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/benchmarks.md")
Results = list[dict[str, Any]]


def filled(text: str, results: Path = ROOT / "docs" / "results") -> str:
    """The text with its tables written anew. Raises KeyError where a marker names no table."""

    def table(match: re.Match[str]) -> str:
        files, make = TABLES[match[1]]
        paths = [path for pattern in files.split() for path in sorted(results.glob(pattern))]
        found = [json.loads(path.read_text()) for path in paths]
        return f"<!-- begin {match[1]} -->\n{make(found)}\n<!-- end {match[1]} -->"

    return re.sub(r"<!-- begin (\S+) -->.*?<!-- end \1 -->", table, text, flags=re.DOTALL)


def checkpoints(measured: Results) -> str:
    """The measured checkpoints, and no others that lie beside them."""
    rows = []
    for name, loss in _losses(measured).items():
        facts = describe(name)
        records = f"{facts['records']:,}" if facts["records"] else "public data only"
        rows.append((f"`{name}`", epsilon_text(facts["epsilon"]), records, f"{loss:.3f}"))
    return _table("checkpoint", "epsilon", "private records", "held-out per-code NLL", rows=rows)


def promises(measured: Results) -> str:
    """What each measured checkpoint spent, and what that would be at the usual delta."""
    rows = []
    for name in _losses(measured):
        facts, card = describe(name), load_card(SHIPPED / name)
        usual = default_delta(card.records) if facts["epsilon"] else None
        spent = card.ledger.pld_epsilon(usual) if usual else None
        rows.append(
            (
                f"`{name}`",
                epsilon_text(facts["epsilon"]),
                f"{facts['delta']:g}" if spent else "",
                f"{epsilon_text(spent)} ({usual:.3g})" if spent else "",
                "" if facts["noise_multiplier"] is None else f"{facts['noise_multiplier']:.4g}",
                "" if facts["sampling_rate"] is None else f"{facts['sampling_rate']:.4g}",
                str(facts["steps"]),
                f"{facts['bytes'] / 1e6:.1f} MB",
            )
        )
    heads = ("checkpoint", "epsilon (PLD)", "delta", "at the default delta", "noise", "rate")
    return _table(*heads, "steps", "size", rows=rows)


def quality(measured: Results) -> str:
    """The gap closed is that of each family between its own worst and best."""
    rows = []
    fidelity = {
        row["name"]: row["all_parts"] for own in measured for row in own.get("checkpoints", [])
    }
    for own in (own for own in measured if "nats_per_code" in own):
        losses = _losses([own])
        worst, best = max(losses.values()), min(losses.values())
        for name, loss in losses.items():
            colours = f"{fidelity[name]:.0%}" if name in fidelity else ""
            closed = f"{(worst - loss) / (worst - best):.0%}"
            rows.append((f"`{name}`", f"{loss:.3f}", closed, colours))
    heads = ("checkpoint", "held-out per-code NLL", "gap closed", "all colours right")
    return _table(*heads, rows=rows)


def attacks(measured: Results) -> str:
    """Membership inference against the checkpoints that were attacked."""
    rows = []
    for own in sorted(measured, key=lambda own: _place(own["checkpoint"])):
        point = next(p for p in own["true_positives"] if p["false_positive_rate"] == 0.01)
        area = f"{own['auc']:.3f} ({own['auc_low']:.3f} to {own['auc_high']:.3f})"
        rate = f"{point['rate']:.2%} ({point['low']:.2%} to {point['high']:.2%})"
        rows.append((f"`{own['checkpoint']}`", f"{own['members']:,}", area, rate))
    heads = ("checkpoint", "records of each kind", "AUC", "true positives at 1 % false ones")
    return _table(*heads, rows=rows)


def engine(measured: Results) -> str:
    """The one-run audit of the private engine."""
    rows = [
        (
            epsilon_text(run["ledger_epsilon"]),
            f"{run['proven_epsilon']:.2f}",
            f"{run['correct']} of {run['guesses']}",
            f"{run['records']:,}",
        )
        for own in measured
        for run in own["runs"]
    ]
    return _table(
        "epsilon of the ledger", "proven at least", "right guesses", "canaries", rows=rows
    )


def tokenizer(measured: Results) -> str:
    """One column a file, each of a tokenizer on its family's test set."""
    sizes = list(measured[0]["psnr"]) if measured else []
    rows = [(size, *(f"{own['psnr'][size]:.2f} dB" for own in measured)) for size in sizes]
    return _table("decoded", *(f"PSNR on `{own['data']}`" for own in measured), rows=rows)


def upsamplers(measured: Results) -> str:
    """One table a file."""
    return "\n\n".join(
        _table(
            "upsampler",
            f"PSNR on `{own['data']}`",
            "detail energy",
            rows=[
                (f"`{row['name']}`", f"{row['psnr']:.2f} dB", f"{row['detail_energy']:.0%}")
                for row in own["upsamplers"]
            ],
        )
        for own in measured
    )


def reranker(measured: Results) -> str:
    """How often the reranker finds what belongs together."""
    rows = [
        (
            f"`{own['data']}`",
            str(own["among"]),
            f"{own['captions_found']:.1%}",
            f"{own['images_found']:.1%}",
        )
        for own in measured
    ]
    return _table("set", "among", "own caption first", "own picture first", rows=rows)


def bench(runs: Results) -> str:
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
    return _table("measured", *(run["settings"]["precision"] for run in runs), rows=rows)


def studio(measured: Results) -> str:
    """Response times of the app beside their bars."""
    rows = []
    for own in measured:
        first = own.get("first_load", {})
        for name, seconds in own["seconds"].items():
            early = f"{first[name]:.1f} s" if name in first else ""
            rows.append((name, early, f"{seconds:.1f} s", f"{own['bars'][name]:g} s"))
    return _table("from the click to", "first", "slowest after", "bar", rows=rows)


def pictures(measured: Results) -> str:
    """Pictures of checkpoints beside real ones, each file's floor and ceilings first."""
    rows = []
    for own in measured:
        plain = {"other real images": own["floor"]}
        for near in own["ceilings"]:
            plain[f"real codes {near['codes']}, `{near['upsampler']}`"] = near
        plain |= {f"`{row['name']}`": row for row in own["checkpoints"]}
        for name, row in plain.items():
            value, low, high = row["frechet"]
            read = row.get("attributes", {}).get("mean")
            rows.append(
                (
                    name,
                    f"{value:.1f} ({low:.1f} to {high:.1f})",
                    f"{row['kernel'][0]:.1f}",
                    f"{row['precision']:.0%}",
                    f"{row['recall']:.0%}",
                    "" if read is None else f"{read:.0%}",
                )
            )
    heads = ("pictures", "Fréchet distance", "kernel distance", "precision", "recall")
    return _table(*heads, "attributes found", rows=rows)


def cost(measured: Results) -> str:
    """What a private example takes, and what times the smallest DP-Wavelet of its size that is."""
    rows = [
        (
            row["name"],
            f"{row['parameters'] / 1e6:,.1f} M",
            f"{row['trained'] / 1e6:,.1f} M",
            f"{row['flops'] / 1e9:,.1f} ({row['flops_times']:.1f} x)",
            f"{row['kept_bytes'] / 2**20:,.0f} MiB ({row['kept_times']:.1f} x)",
            str(row["passes"]),
            f"{row['drawing_flops'] / 1e9:,.0f} ({row['drawing_times']:.1f} x)",
        )
        for own in measured
        for row in own["networks"]
    ]
    heads = ("network", "parameters", "trained", "GFLOP an example", "activations of one")
    return _table(*heads, "passes to draw", "GFLOP to draw", rows=rows)


TABLES: dict[str, tuple[str, Callable[[Results], str]]] = {
    "checkpoints": ("held-out*.json", checkpoints),
    "promises": ("held-out*.json", promises),
    "quality": ("colours.json held-out*.json", quality),
    "attacks": ("membership/*.json", attacks),
    "engine": ("audit-engine.json", engine),
    "tokenizer": ("tokenizer*.json", tokenizer),
    "upsamplers": ("upsampler*.json", upsamplers),
    "reranker": ("reranker.json", reranker),
    "bench": ("bench-*.json", bench),
    "pictures": ("quality*.json", pictures),
    "cost": ("cost.json", cost),
    "studio": ("studio.json", studio),
}
"""Each table's result files and how it is made of them."""


def _losses(measured: Results) -> dict[str, float]:
    """The held-out loss of every measured checkpoint, in the order of `list`."""
    found = {row["name"]: row["loss"] for own in measured for row in own["nats_per_code"]}
    return {name: found[name] for name in sorted(found, key=_place)}


def _place(name: str) -> int:
    names = checkpoint_names(SHIPPED)
    return names.index(name) if name in names else len(names)


def _table(*heads: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text()))
