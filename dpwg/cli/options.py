"""Arguments that several verbs take, and what is read from them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from dpwg.cli.console import print_line, progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from dpwg.data import Records
    from dpwg.method.captions import TextEncoder
    from dpwg.method.tokenizer import SpectralTokenizer
    from dpwg.training.examples import Examples
    from dpwg.training.processes import Ranks

T = TypeVar("T")
Run = Callable[[argparse.Namespace], Any]
"""Runs a verb. What it gives is printed by `main`, unless it is None."""
Verb = Callable[[str, Run, str], argparse.ArgumentParser]
"""Adds a verb by name, function and help, and gives the parser that its arguments go to."""
SHIPPED_PRESET = "faces-128"
PATH_HELP = "a folder of images with their captions; FORMAT:PATH where its format is not clear"


def data_options(command: argparse.ArgumentParser, default: str) -> None:
    """What `read_records` needs."""
    command.add_argument("--data", default=default, help=f"a rendered set, or {PATH_HELP}")
    command.add_argument("--count", type=int, help="only the first records of a rendered set")
    command.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out images that are broken or have no caption; changes how many there are",
    )


def unit_option(command: argparse.ArgumentParser) -> None:
    """The unit of privacy."""
    command.add_argument(
        "--unit",
        default="image",
        metavar="COLUMN",
        help="what is protected: each image (default), or all images together that have the same "
        "value in this column of the metadata: a person, a patient",
    )


def delta_option(command: argparse.ArgumentParser) -> None:
    """Delta, which `read_delta` fills in."""
    command.add_argument(
        "--delta",
        type=float,
        help="must be below one over the records; by default the power of ten at or below a tenth "
        "of that",
    )


def read_delta(options: argparse.Namespace, records: int) -> float:
    """The delta that was given, or the usual one for so many records."""
    from dpwg.privacy.accounting import default_delta

    return default_delta(records) if options.delta is None else float(options.delta)


def preset_option(command: argparse.ArgumentParser, default: str | None = SHIPPED_PRESET) -> None:
    """Sizes and settings by name, which the other options change."""
    command.add_argument(
        "--preset", default=default, help=f"{SHIPPED_PRESET} (what ships), celeba-256 or coco-256"
    )


def device_option(command: argparse.ArgumentParser) -> None:
    """Where a verb computes."""
    command.add_argument(
        "--device", choices=("cpu", "cuda"), help="cuda by default where there is a GPU"
    )


def precision_option(command: argparse.ArgumentParser) -> None:
    """What a verb computes in."""
    command.add_argument(
        "--precision",
        choices=("auto", "bfloat16", "float32"),
        help="auto by default: bfloat16 where the device multiplies it, float32 elsewhere",
    )


def checkpointing_option(command: argparse.ArgumentParser) -> None:
    """A training's memory against its time."""
    command.add_argument(
        "--checkpointing",
        action="store_true",
        help="compute activations again in the backward pass instead of keeping them",
    )


SAMPLING = ("guidance", "temperature", "top_k", "top_p", "candidates")


def sampling_options(command: argparse.ArgumentParser) -> None:
    """What `read_settings` needs for a `Sampling`."""
    command.add_argument("--guidance", type=float, help="1 is none")
    command.add_argument("--temperature", type=float, help="0 takes the likeliest codes")
    command.add_argument("--top-k", type=int, help="0 cuts nothing")
    command.add_argument("--top-p", type=float, help="1 cuts nothing")
    command.add_argument("--candidates", type=int, help="of the coarsest band, 1 is no choice")


def read_settings(
    kind: type[T], options: argparse.Namespace, default: T | None = None, **more: Any
) -> T:
    """The settings of a run: the default ones, but for what the command line gave, and `more`."""
    given = vars(options) | more
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    changed = {n: v for n, v in given.items() if n in known and v is not None}
    return kind(**changed) if default is None else replace(default, **changed)  # type: ignore[type-var]


def refuse_unused(options: argparse.Namespace, *names: str, beside: str) -> None:
    """Raise ValueError for an option that was given and would change nothing."""
    for name in names:
        if (value := getattr(options, name)) != options.verb.get_default(name):
            raise ValueError(
                f"Expected no {name.replace('_', '-')}={value!r} with {beside}, where it changes "
                "nothing; leave it out."
            )


def refuse_all_but(options: argparse.Namespace, *names: str, beside: str) -> None:
    """Raise ValueError for an option that was given, other than these: it would change nothing."""
    others = set(vars(options)) - {"run", "verb", "json", *names}
    refuse_unused(options, *sorted(others), beside=beside)


def read_records(options: argparse.Namespace, ranks: Ranks | None = None) -> Records:
    """The set that --data names, without broken records where --skip-broken says so."""
    from dpwg.data import open_records

    if not options.skip_broken:
        return open_records(options.data, count=options.count)
    with progress_bar("looking for broken images", ranks) as progress:
        return open_records(options.data, count=options.count, skip_broken=True, progress=progress)


def is_public_mix(data: str) -> bool:
    """Whether --data names a rendered set of the mix, not one that its user declares public."""
    from dpwg.data import RENDERED_SETS

    return data in RENDERED_SETS and data.startswith("public-")


def read_public_records(options: argparse.Namespace) -> Records:
    """The set that a public part is trained on. It leaves no trace in a privacy ledger."""
    from dpwg.data import PHOTO_SETS, RENDERED_SETS, is_public
    from dpwg.data.public_photos import PUBLIC_PHOTOS

    known = {*RENDERED_SETS, *PHOTO_SETS, *PUBLIC_PHOTOS}
    declared = options.public and options.data not in known
    public = options.data in PUBLIC_PHOTOS or is_public(options.data)
    if not (is_public_mix(options.data) or public or declared):
        raise ValueError(
            f"Expected data={options.data!r} to be public: public parts are trained without noise. "
            "Pass a public set, or --public for a folder in which nothing is sensitive."
        )
    return read_records(options)


def encode_examples(
    records: Records,
    tokenizer: SpectralTokenizer,
    encoder: TextEncoder,
    ranks: Ranks | None = None,
    group_I: Tensor | None = None,
    *,
    lines: bool = False,
) -> Examples:
    """The set's training examples, with a bar while they are encoded, by the leading rank alone."""
    from dpwg.data.cache import cache_root
    from dpwg.training.examples import prepare_examples

    if ranks and not ranks.leads:
        ranks.wait()
    title = f"encoding {records.name}"
    with tqdm(total=2 * len(records), desc=title, unit="", disable=lines) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            if lines:
                print_line({"stage": stage, "done": done, "total": total})
            else:
                bar.update(done + (total if stage == "images" else 0) - bar.n)

        examples = prepare_examples(
            records,
            encoder.to(ranks.device if ranks else "cpu"),
            tokenizer,
            cache_root() / "encoded",
            group_I=group_I,
            progress=progress,
        )
    if ranks and ranks.leads:
        ranks.wait()
    return examples


def new_or_resumed(folder: Path, *, resume: bool) -> Path:
    """The same run folder, which must hold a run exactly when one is resumed."""
    if (folder / "latest").exists() and not resume:
        raise ValueError(
            f"{folder} holds a run already; pass --resume to go on with it, or another folder."
        )
    if resume and not (folder / "latest").exists():
        raise ValueError(f"Expected a run to resume in {folder}, found none.")
    return folder
