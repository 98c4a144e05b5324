"""Families of checkpoints: what a page shows by the data set that they were trained on.

A family is the part of a checkpoint's name before the last slash. One that is not known here, such
as a visitor's own, has its name as title and no examples, and its records are never shown.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dpwg.data.dataset import REAL_PEOPLE as REAL_PEOPLE
from dpwg.data.dataset import DataSet
from dpwg.data.sets import SETS
from dpwg.method.families import FAMILIES
from dpwg.modules import SHIPPED, checkpoint_root, read_config
from dpwg.release.folder import checkpoint_names, find_checkpoint
from dpwg.release.shared import find_rerankers
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, all_upsamplers

FACES = "faces"
DEFAULT_FAMILY = FACES
"""What the page opens with, where it is there."""
USUAL_EPSILON = 10
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PLACEHOLDER_CHARACTERS = 70


def known(family: str) -> DataSet:
    """What is known of a family's data set. A rival's name is in the title; it has no reranker."""
    data, _, method = family.partition("/")
    own = SETS.get(data) or DataSet(name=family, splits={})
    if method in FAMILIES:
        title = f"{own.title or data}, by {FAMILIES[method].title}"
        return replace(own, title=title, reranker=f"{family}/reranker")
    return own if own.title else replace(own, title=family or "Other checkpoints")


def family_of(checkpoint: str) -> str:
    """The data set in a checkpoint's name."""
    return checkpoint.rpartition("/")[0]


def ordered(names: Sequence[str]) -> list[str]:
    """Names as pages list them: the default family first, and in each what is for images first."""

    def place(name: str) -> tuple[bool, str, bool]:
        family = family_of(name)
        return family != DEFAULT_FAMILY, family, bool(unit_of(name))

    return sorted(names, key=place)


def families_of(names: Sequence[str]) -> list[str]:
    """The families of all names, the one that the page opens with first."""
    return list(dict.fromkeys(map(family_of, ordered(names))))


def siblings(family: str, names: Sequence[str] | None = None) -> list[str]:
    """The checkpoints of one family: public first, then by epsilon."""
    names = checkpoint_names() if names is None else names
    return [name for name in ordered(names) if family_of(name) == family]


def usual_checkpoint(names: Sequence[str]) -> str:
    """What a page begins with: of the first family's private releases for images, the one with the
    largest epsilon up to USUAL_EPSILON.

    Where there is none, it is what comes next: more epsilon, a bound for groups, a name that tells
    none, what saw public data alone, and last what has no privacy. Only names are read.
    """
    return min(siblings(families_of(names)[0], names), key=_rank)


def unit_of(checkpoint: str) -> str:
    """What its epsilon is for, by its name: "person" of "person-eps-10", nothing for an image."""
    found = re.fullmatch(r"(.+)-eps-.+", checkpoint.rpartition("/")[2])
    return found[1] if found else ""


def _rank(checkpoint: str) -> tuple[int, bool, float]:
    last = checkpoint.rpartition("/")[2]
    if last == "public" or last.endswith("eps-inf"):
        return 3 + (last != "public"), False, 0.0
    found = re.search(r"(?<![^-])eps-(\d+(?:\.\d+)?)$", last)
    if found is None:
        return 2, False, 0.0
    epsilon = float(found[1])
    return int(unit_of(checkpoint) != ""), epsilon > USUAL_EPSILON, abs(USUAL_EPSILON - epsilon)


def example_captions(family: str) -> list[str]:
    """A family's lines of examples/; none where the package is used without them."""
    file = EXAMPLES / (known(family).examples or "nowhere")
    return file.read_text().splitlines() if file.is_file() else []


def first_caption(family: str) -> str:
    """A family's first example, or no caption."""
    return next(iter(example_captions(family)), "")


def placeholder(family: str) -> str:
    """The beginning of an example, to show where nothing was typed yet."""
    return textwrap.shorten(first_caption(family), PLACEHOLDER_CHARACTERS, placeholder=" …")


def variations(family: str) -> str:
    """A family's captions in which one thing changes at a time, one a line."""
    return "\n".join(known(family).variations)


def carried(text: str, family: str, suggest: Callable[[str], str]) -> str:
    """What a field has after a change to a family: what somebody typed stays, a suggestion is
    replaced by that of the family.
    """
    suggested = {suggest(name) for name in SETS} | {""}
    return suggest(family) if text in suggested else text


def suited_upsampler(checkpoint: str | Path) -> str:
    """The upsampler that a checkpoint's configuration asks for, or the usual one."""
    with suppress(OSError, ValueError):  # who draws with it is told
        asked = read_config(find_checkpoint(checkpoint)).get("upsampler")
        if isinstance(asked, str) and asked in all_upsamplers():
            return asked
    return DEFAULT_UPSAMPLER


def reranked(family: str) -> bool:
    """Whether there is a reranker for a family's candidates. Only names are read."""
    places = [root / known(family).reranker for root in (checkpoint_root(), SHIPPED)]
    return any(folder in places for folder in find_rerankers())
