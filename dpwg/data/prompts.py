"""Captions to draw from: a file of lines, or the public templates; never a private set's own.

A caption of a sensitive image is as private as the image: a data set drawn from it would hold it
word for word, and no epsilon covers that.
"""

from __future__ import annotations

import re
from pathlib import Path

from dpwg.data.folder import METADATA, rows
from dpwg.data.formats import FORMATS
from dpwg.data.public import public_caption
from dpwg.data.records import MAX_CAPTION_CHARACTERS

MAX_CAPTIONS = 10_000_000


def read_captions(source: str, *, private_set: str, public: bool = False) -> tuple[str, ...]:
    """Captions from "public:N", the first N of the public templates, or from a file.

    The file has a caption a line, or is the metadata of a folder of images. What looks like the
    metadata of a data set, or lies in one's folder or in that of `private_set`, is refused unless
    `public` declares it harmless. Raises ValueError or OSError.
    """
    if source.startswith("public:"):
        return _templates(source.removeprefix("public:"))
    path = Path(source)
    if not public and (found := _private(path, private_set)):
        raise ValueError(
            f"Expected captions={source!r} to be public, found {found}: captions are private too, "
            "and the data set would repeat them word for word. Pass public:N, a file of your own "
            "wording, or declare them with --captions-are-public if nothing in them is sensitive."
        )
    if path.is_dir():
        raise ValueError(f"Expected captions={source!r} to be a file, found a folder.")
    if path.name.lower() in METADATA:
        lines = [(number, str(row.get("text") or "")) for number, row in rows(path)]
    else:
        lines = list(enumerate(_text(path).splitlines(), start=1))
    captions = [(number, line.strip()) for number, line in lines if line.strip()]
    for number, caption in captions:
        if len(caption) > MAX_CAPTION_CHARACTERS:
            raise ValueError(
                f"Expected captions of at most {MAX_CAPTION_CHARACTERS} characters, found "
                f"{len(caption)} in line {number} of {source}; shorten it."
            )
    if not captions:
        raise ValueError(f"Expected at least one caption in {source}, found none.")
    return tuple(caption.encode(errors="replace").decode() for _, caption in captions)


def _templates(number: str) -> tuple[str, ...]:
    if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= MAX_CAPTIONS:
        raise ValueError(
            f"Expected captions='public:{number}' to end with a number in [1, {MAX_CAPTIONS:,}]."
        )
    return tuple(public_caption(index) for index in range(int(number)))


def _private(path: Path, private_set: str) -> str | None:
    """What makes a path look like private captions, whatever links lead to it."""
    named = re.compile(re.escape(private_set) + r"(-\d+)?")  # rendered sets end with their count
    for place in (path.absolute(), path.resolve()):
        if place.name.lower() in METADATA:
            return "the metadata of a folder of images"
        if place.suffix.lower() in (".json", ".tar", ".parquet", ".csv"):
            return "a file of the kinds that data sets keep captions in"
        for folder in (place, *place.parents):
            if form := _format(folder):
                return f"a path in {folder.name!r}, a data set in the format {form}"
            if named.fullmatch(folder.name):
                return f"a path in {folder.name!r}, which the checkpoint's card names as private"
    return None


def _format(folder: Path) -> str | None:
    """The format of which a folder holds a data set, if it does."""
    if not folder.is_dir():
        return None
    return next((name for name, known in FORMATS.items() if known.found_in(folder)), None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected {path} to be a text file in UTF-8 with a caption a line: {error}."
        ) from error
