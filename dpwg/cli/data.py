"""`data` and `check`: the embedded sets, and what is wrong with yours."""

from __future__ import annotations

import argparse
from typing import Any

from dpwg.cli.console import listed, progress_bar, run_counted
from dpwg.cli.options import PATH_HELP, Verb, unit_option


def add_data(verb: Verb) -> None:
    text = "render the embedded data sets; `data check PATH` reports what is wrong with yours"
    command = verb("data", _data, text)
    command.add_argument("sets", nargs="*", help="which ones; all by default")
    command.add_argument("--count", type=int, help="only the first records")


def _data(options: argparse.Namespace) -> Any:
    from dpwg.data import RENDERED_SETS, open_records, render

    answer = []
    if unknown := sorted(set(options.sets) - set(RENDERED_SETS)):
        raise ValueError(f"Expected sets={unknown} in {sorted(RENDERED_SETS)}.")
    for name in options.sets or RENDERED_SETS:
        total = options.count or RENDERED_SETS[name]
        run_counted(render(name, count=options.count), total, f"rendering {name}")
        records = open_records(name, count=options.count)
        answer.append({"name": name, "records": len(records), "digest": records.digest})
    return answer


def add_check(verb: Verb) -> None:
    text = (
        "report what is wrong with a data set on disk; writes nothing, exits with 2 if anything is"
    )
    command = verb("check", _check, text)
    command.add_argument("path", help=PATH_HELP)
    unit_option(command)


def _check(options: argparse.Namespace) -> Any:
    from dpwg.data.check import check_records
    from dpwg.data.formats import open_files

    records = open_files(options.path)
    with progress_bar(f"reading {records.name}") as progress:
        report = check_records(
            records, column=None if options.unit == "image" else options.unit, progress=progress
        )
    answer = report.to_json()
    return answer if options.json else {name: listed(value) for name, value in answer.items()}
