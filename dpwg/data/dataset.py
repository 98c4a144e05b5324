"""What this program knows of a data set: its splits, and what may be shown of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dpwg.data.files import FileRecords
from dpwg.data.records import Record

REAL_PEOPLE = "The training pictures of this checkpoint show real people, so they are never shown."
UNKNOWN_PEOPLE = (
    "The training pictures of this checkpoint may show real people, so they are never shown."
)


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set by name, which is also that of its folder among the checkpoints.

    `splits` say how many records each has, None where it depends on the files; a split's records
    are called name-split. They are drawn by `make` from split and number, or opened by `open`, the
    first so many. `public` sets train public parts, which leaves no trace in a privacy ledger.

    Of the rest, pages show the title, the `examples` (a file of examples/), captions `drawn` in the
    records' wording, `variations` of a caption in which one thing changes at a time, and records
    unless `hidden` says why not. `reranker` is where the one that knows its pictures would be among
    the checkpoints; `unit` the column that tells whose a record is; `measures` are what can be
    measured with it: "attack", with both splits at hand, "attributes", of people.
    """

    name: str
    title: str = ""
    splits: Mapping[str, int | None]
    make: Callable[[str, int], Record] | None = None
    open: Callable[[str, int | None], FileRecords] | None = None
    public: bool = False
    hidden: str = UNKNOWN_PEOPLE
    examples: str = ""
    variations: tuple[str, ...] = ()
    draw: Callable[[], str] = str
    reranker: str = "reranker"
    unit: str = ""
    measures: tuple[str, ...] = ()
    terms: str = "Apache-2.0"
