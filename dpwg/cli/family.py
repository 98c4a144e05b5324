"""`train`: a whole family of releases within a time budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tyro.conf import Positional

from dpwg.cli.console import Bars, print_line
from dpwg.cli.options import Device


def train(
    family: Positional[str],
    /,
    *,
    minutes: float | None = None,
    out: Path | None = None,
    run_folder: Path | None = None,
    pack: Path | None = None,
    packed: Path | None = None,
    device: Device = None,
) -> Any:
    """Train a whole family of checkpoints within a time budget.

    Args:
        family: celeba (needs DPWG_PHOTOS)
        minutes: of work in all, counting interrupted runs
        out: output folder; checkpoints/FAMILY by default
        run_folder: private training state; runs/FAMILY by default
        pack: write the files that another machine needs into this folder, which is private; then
            stop
        packed: train from a folder made by --pack
    """
    from dpwg.modules import checkpoint_root
    from dpwg.release.shared import load_tokenizer
    from dpwg.training.family import train_family
    from dpwg.training.presets import FAMILIES
    from dpwg.training.processes import Ranks, keep_freed_memory
    from dpwg.training.sources import Source

    if family not in FAMILIES:
        raise ValueError(f"There is no family {family!r:.80}; there is {', '.join(FAMILIES)}.")
    plan = FAMILIES[family]
    out = out or checkpoint_root() / family
    if pack:
        columns = tuple({run.unit for run in plan.runs} - {"image"})
        source = _records(family)
        source.pack(load_tokenizer(out / "tokenizer"), columns, pack)
        return {file.name: file.stat().st_size for file in sorted(pack.glob("[!.]*"))}
    if minutes is None or not minutes > 0:
        raise ValueError("Expected --minutes above 0: the total time for all stages.")
    keep_freed_memory()
    ranks = Ranks.from_environment(device)
    bars = Bars(ranks)
    chosen = Source.packed(packed, ranks.device) if packed else _records(family)
    done: dict[str, Any] = {}
    folder = run_folder or Path("runs") / family
    for report in train_family(plan, chosen, out, folder, minutes=minutes, ranks=ranks):
        bars(report.stage, report.step, report.steps)
        if report.done is not None:
            done[report.stage] = report.done
            if ranks.leads:
                print_line({"stage": report.stage, **report.done})
    return {"folder": str(out), "stages": list(done)} if ranks.leads else None


def _records(name: str) -> Any:
    from dpwg.data import open_records
    from dpwg.data.cache import cache_root
    from dpwg.method.encoders import default_encoder
    from dpwg.training.presets import FAMILIES
    from dpwg.training.sources import Source

    family = FAMILIES[name]
    return Source(
        open_records(family.public_set),
        open_records(family.private_set),
        default_encoder(),
        cache_root() / "encoded",
    )
