"""Captions to draw from: a file of lines, or the public templates; never a private set's own.

A caption of a sensitive image is as private as the image: a data set drawn from it would hold it
word for word, and no epsilon covers that.
"""

from __future__ import annotations

import re
from pathlib import Path

from dpwg.data.files import lines_of
from dpwg.data.folder import METADATA, table_rows, texts_of
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
        count = source.removeprefix("public:")
        if not re.fullmatch("[0-9]{1,9}", count) or not 1 <= int(count) <= MAX_CAPTIONS:
            raise ValueError(f"Expected captions={source!r} to end in [1, {MAX_CAPTIONS:,}].")
        return tuple(map(public_caption, range(int(count))))
    path = Path(source)
    if not public and (found := _private(path, private_set)):
        raise ValueError(
            f"Expected captions={source!r} to be public, found {found}: captions are private too, "
            "and the data set would repeat them word for word. Pass public:N, a file of your own "
            "wording, or declare them with --captions-are-public if nothing in them is sensitive."
        )
    if path.name.lower() in METADATA:
        rows = table_rows(path.name, path.read_bytes())
        lines = [(number, str(text)) for number, row in rows for text in texts_of(row)]
    else:
        lines = list(enumerate(lines_of(path), start=1))
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


def _private(path: Path, private_set: str) -> str | None:
    """What makes a path look like private captions, whatever links lead to it."""
    named = re.compile(re.escape(private_set) + r"(-\d+)?")  # rendered sets end with their count
    for place in (path.absolute(), path.resolve()):
        if place.name.lower() in METADATA:
            return "the metadata of a folder of images"
        if place.suffix.lower() in (".json", ".tar", ".parquet", ".csv"):
            return "a file of the kinds that data sets keep captions in"
        for folder in (place, *place.parents):
            if named.fullmatch(folder.name):
                return f"a path in {folder.name!r}, which the checkpoint's card names as private"
            if folder.is_dir() and _holds_captions(folder, near=folder in (place, place.parent)):
                return f"a path in {folder.name!r}, which holds a data set"
    return None


def _holds_captions(folder: Path, *, near: bool) -> bool:
    """Whether a folder holds a data set whose captions may be in text files in it, or `near`."""
    forms = FORMATS if near else ("coco", "celeba")
    metadata = any((folder / name).is_file() for name in METADATA)
    return metadata or any(FORMATS[form].is_at(folder) for form in forms)
