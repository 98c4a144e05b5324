"""Options that several verbs take, and what is read from them."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import tyro

if TYPE_CHECKING:
    from dpwg.cli.console import Bars
    from dpwg.data import Records

T = TypeVar("T")
SHIPPED_PRESET = "faces-128"

Device = Annotated[
    Literal["cpu", "cuda", "mps"] | None, tyro.conf.arg(help="a GPU by default, if there is one")
]
Unit = Annotated[
    str,
    tyro.conf.arg(
        metavar="COLUMN",
        help="what is protected: each image, or all images together that have the same value in "
        "this column of the metadata: a person, a patient",
    ),
]
Delta = Annotated[
    float | None,
    tyro.conf.arg(
        metavar="FLOAT",
        help="must be below one over the records; by default a tenth of that, and 1e-5 at most",
    ),
]
Results = Annotated[
    Path | None, tyro.conf.arg(metavar="FILE", help="write the measurement to this file")
]
TokenizerFolder = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="FOLDER",
        help="declared public by being named; checkpoints/tokenizer by default",
    ),
]
EncoderName = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="NAME",
        help="a CLIP, T5 or BERT of the hub, as user/name or user/name@revision, or a folder; the "
        "preset's by default; any but the embedded one needs --public",
    ),
]
Evaluate = Annotated[
    str | None,
    tyro.conf.arg(metavar="SET", help="train nothing; measure what is in --out on this set"),
]


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where records come from."""

    data: str
    """A set by its name, or a folder of images with their captions; FORMAT:PATH where its format is
    not clear."""
    count: int | None = None
    """Only the first records of a set that is known by name."""
    skip_broken: bool = False
    """Leave out images that are broken or have no caption; changes how many there are."""

    def records(self, bars: Bars) -> Records:
        """The set, without broken records where --skip-broken says so."""
        from dpwg.data import open_records

        return open_records(
            self.data,
            count=self.count,
            skip_broken=self.skip_broken,
            progress=bars.of("looking for broken images"),
        )


@dataclass(frozen=True, kw_only=True)
class Part(Data):
    """What a public part is trained on, where, and where it goes. The records leave no trace in a
    privacy ledger.
    """

    public: bool = False
    """Declare that nothing in a folder given as --data, or behind --text-encoder, is sensitive."""
    preset: str = SHIPPED_PRESET
    """Sizes and settings, which the other options change."""
    out: Path | None = None
    """Where it goes; by default its own place among the checkpoints."""
    device: Device = None

    @property
    def rendered(self) -> bool:
        """Whether this is a rendered set of the mix, not one that its user declares public."""
        from dpwg.data import RENDERED_SETS

        return self.data in RENDERED_SETS and self.data.startswith("public-")

    def records(self, bars: Bars) -> Records:
        """The set. Raises ValueError unless it is public, or declared to be."""
        from dpwg.data.sets import SPLITS, is_public

        if not (is_public(self.data) or (self.public and self.data not in SPLITS)):
            raise ValueError(
                f"Expected data={self.data!r} to be public: public parts are trained without "
                "noise. Pass a public set, or --public for a folder in which nothing is sensitive."
            )
        return super().records(bars)


def preset_settings(default: T, words: Sequence[str]) -> T:
    """The settings of that kind in the preset that the words of a command line name."""
    from dpwg.training.presets import get_preset

    reader = ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--preset", default=SHIPPED_PRESET)
    name = reader.parse_known_args(words)[0].preset
    return next(
        (own for own in vars(get_preset(name)).values() if type(own) is type(default)), default
    )


def new_or_resumed(folder: Path, *, resume: bool) -> Path:
    """The same run folder, which must hold a run exactly when one is resumed."""
    from dpwg.training.run_state import holds_run

    if holds_run(folder) != resume:
        raise ValueError(
            f"Expected a run to resume in {folder}, found none."
            if resume
            else f"{folder} holds a run; pass --resume to go on with it, or another folder."
        )
    return folder
