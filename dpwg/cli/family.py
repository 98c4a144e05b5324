"""`train`: a whole family of releases within a time budget."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dpwg.cli.console import print_line
from dpwg.cli.options import Verb, device_option, refuse_unused


def add_train(verb: Verb) -> None:
    text = "train a whole family of checkpoints within a time budget"
    command = verb("train", _train, text)
    command.add_argument("family", help="celeba (needs DPWG_PHOTOS)")
    command.add_argument("--minutes", type=float, help="of work in all, counting interrupted runs")
    device_option(command)
    command.add_argument("--out", type=Path, help="output folder (default: checkpoints/FAMILY)")
    command.add_argument(
        "--run-folder", type=Path, help="private training state (default: runs/FAMILY)"
    )
    command.add_argument(
        "--pack",
        type=Path,
        metavar="FOLDER",
        help="write the files that another machine needs, then stop; the folder is private",
    )
    command.add_argument(
        "--packed", type=Path, metavar="FOLDER", help="train from a folder made by --pack"
    )


def _train(options: argparse.Namespace) -> Any:
    from dpwg.modules import checkpoint_root
    from dpwg.release.folder import load_tokenizer
    from dpwg.training.memory import keep_freed_memory
    from dpwg.training.processes import Ranks
    from dpwg.training.recipe import FAMILIES, train_family

    if options.family not in FAMILIES:
        raise ValueError(f"Expected family={options.family!r:.80} in {list(FAMILIES)}.")
    family = FAMILIES[options.family]
    out = options.out or checkpoint_root() / family.name
    with _Bars() as told:
        if options.pack:
            refuse_unused(options, "minutes", "packed", "run_folder", beside="--pack")
            source = _records(family.name, told)
            columns = tuple({run.unit for run in family.runs} - {"image"})
            source.pack(load_tokenizer(out / "tokenizer"), columns, options.pack)
            return {file.name: file.stat().st_size for file in sorted(options.pack.glob("[!.]*"))}
        if options.minutes is None or not options.minutes > 0:
            raise ValueError("Expected --minutes above 0: the total time for all stages.")
        keep_freed_memory()
        ranks = Ranks.from_environment(options.device)
        folder = options.run_folder or Path("runs") / family.name
        if options.packed:
            from dpwg.training.sources import PackedSource

            source = PackedSource(options.packed, ranks.device, told)
        else:
            if not ranks.leads:
                ranks.wait()
            source = _records(family.name, told)
            if ranks.leads:
                ranks.wait()
        done: dict[str, Any] = {}
        for report in train_family(
            family, source, out, folder, minutes=options.minutes, ranks=ranks
        ):
            told(report.stage, report.step, report.steps)
            if report.done is not None:
                done[report.stage] = report.done
                if ranks.leads:
                    print_line({"stage": report.stage, **report.done})
    return {"folder": str(out), "stages": list(done)} if ranks.leads else None


def _records(name: str, told: Callable[[str, int, int], None]) -> Any:
    from dpwg.data import open_records
    from dpwg.data.cache import cache_root
    from dpwg.method.encoders import default_encoder
    from dpwg.training.recipe import FAMILIES
    from dpwg.training.sources import RecordSource

    family = FAMILIES[name]
    return RecordSource(
        open_records(family.public_set),
        open_records(family.private_set),
        default_encoder(),
        cache_root() / "encoded",
        told,
    )


class _Bars:
    """One progress bar of the leading process, begun anew for every stage."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""
        self._hidden = os.environ.get("RANK", "0") != "0"  # of torchrun

    def __enter__(self) -> Callable[[str, int, int], None]:
        return self._told

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _told(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self.__exit__()
            self._bar = tqdm(desc=stage, total=total, unit="", mininterval=2, disable=self._hidden)
            self._stage = stage
        self._bar.total = total
        self._bar.update(done - self._bar.n)
