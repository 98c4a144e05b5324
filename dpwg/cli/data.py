"""`data` and `check`: the embedded sets, and what is wrong with yours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tyro.conf import Positional

from dpwg.cli.console import Bars
from dpwg.cli.options import Unit


def data(sets: Positional[tuple[str, ...]] = (), /, *, count: int | None = None) -> Any:
    """Render the embedded data sets; `data check PATH` tells what is wrong with yours.

    Args:
        sets: which ones; all by default
        count: only the first records
    """
    from dpwg.data.sets import RENDERED_SETS, SPLITS, open_records, render

    answer = []
    if unknown := sorted(set(sets) - set(RENDERED_SETS)):
        raise ValueError(f"There is no set {unknown}; there are {sorted(RENDERED_SETS)}.")
    for name in sets or RENDERED_SETS:
        total = count or RENDERED_SETS[name]
        Bars().run(render(name, count=count), total, f"rendering {name}")
        records = open_records(name, count=count)
        row = {"name": name, "records": len(records), "digest": records.digest}
        answer.append(row | {"terms": SPLITS[name][0].terms})
    return answer


def check(path: Positional[str], /, *, unit: Unit = "image") -> Any:
    """Tell what is wrong with a data set on disk; writes nothing, ends with 2 if anything is.

    Args:
        path: a folder of images with their captions; FORMAT:PATH where its format is not clear
    """
    from dpwg.data.check import check_records
    from dpwg.data.formats import open_files
    from dpwg.method.encoders import default_encoder

    def cut(captions: Sequence[str]) -> int:
        encoder = default_encoder()
        return sum(length == encoder.max_tokens for length in encoder.lengths(captions))

    records, bars = open_files(path), Bars()
    column = None if unit == "image" else unit
    progress = bars.of(f"reading {records.name}")
    return check_records(records, column=column, cut=cut, progress=progress)
