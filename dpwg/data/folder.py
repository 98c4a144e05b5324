"""Your own images: a folder with `metadata.jsonl` or `metadata.csv`, the ImageFolder convention, or
with a text file beside each image, as Kohya's trainers and img2dataset write them.

Not read by `datasets`: its table reader shifts a row with an unquoted comma, makes ids floats and a
caption "NA" none, and takes 16 s at every start to look at 10,000 images; this takes one.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from dpwg.data.files import (
    IMAGE_SUFFIXES,
    FileRecords,
    decoded,
    facts,
    file_entry,
    images_below,
    inside,
    lines_of,
    name_of,
)

METADATA = ("metadata.jsonl", "metadata.csv")
SIDECARS = (".txt", ".caption")
TEXT_COLUMNS = ("text", "caption", "captions")


class Row(NamedTuple):
    """A row of metadata: where it stands, and the name, captions and facts of its image."""

    where: str
    name: str
    texts: list[str]
    facts: dict[str, str]


def found_in(path: Path) -> bool:
    """Whether a path is such a folder."""
    if any((path / name).is_file() for name in METADATA):
        return True
    folders = (place for place in path.iterdir() if place.is_dir()) if path.is_dir() else ()
    return any(map(_has_sidecars, itertools.chain((path,), folders)))


def _has_sidecars(folder: Path) -> bool:
    """Whether an image in a folder has a text file of its name beside it."""
    names = {*os.listdir(folder)} if folder.is_dir() else set()
    stems = {os.path.splitext(n)[0] for n in names if n.lower().endswith(tuple(IMAGE_SUFFIXES))}
    return any(f"{stem}{suffix}" in names for stem in stems for suffix in SIDECARS)


def read(folder: Path) -> FileRecords:
    """Records of a folder; each row of its metadata has `file_name` and a caption, or a list.

    The captions are in `text`, `caption` or `captions`. Rows of the same file are one record. Other
    columns are attributes, as far as the rows of a file agree. Names that lead out are refused.
    """
    here = images_below(folder)
    own = metadata_of([path.name for path in folder.iterdir() if path.is_file()])
    source = folder / own if own else folder
    rows = read_rows(own, source.read_bytes()) if own else _sidecar_rows(here)
    found = gathered(rows, here)
    if own is None and not any(row.texts for row in found.values()):
        raise ValueError(
            f"Expected {' or '.join(METADATA)} in {folder} with rows of file_name and text, or "
            f"{' or '.join(SIDECARS)} files beside the images."
        )
    entries = [
        file_entry(name, here.get(name, folder / name), row.texts, row.facts)
        for name, row in found.items()
    ]
    unlisted = sorted(here.keys() - found.keys())
    return FileRecords(name_of(folder), entries, "folder", str(source), unlisted)


def metadata_of(names: Collection[str]) -> str | None:
    """Which of the names is that of the metadata; ValueError where two are."""
    found = [name for name in METADATA if name in names]
    if len(found) > 1:
        raise ValueError(f"Expected {METADATA[0]} or {METADATA[1]}, found both; keep one.")
    return found[0] if found else None


def gathered(rows: Iterable[Row], names: Collection[str]) -> dict[str, Row]:
    """Rows by the file that they are of: its name as it is in `names`, or else as it is written.

    Accents composed or not are the same letter, as are "\\\\" and "/".
    """
    composed = {unicodedata.normalize("NFC", name): name for name in names}
    found: dict[str, Row] = {}
    for row in rows:
        name = inside(row.name, row.where)
        if name not in names:
            name = composed.get(unicodedata.normalize("NFC", name), name)
        if (before := found.get(name)) is not None:
            agreed = {n: v for n, v in before.facts.items() if row.facts.get(n) == v}
            row = before._replace(texts=before.texts + row.texts, facts=agreed)
        found[name] = row
    return found


def read_rows(file: str, content: bytes) -> Iterator[Row]:
    """The rows of a metadata file. Raises ValueError for one that does not fit, naming it."""
    for number, row in table_rows(file, content):
        where = f"row {number:,} of {PurePosixPath(file).name}"
        name, texts = row.get("file_name"), texts_of(row)
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"Expected a file_name in {where}, found columns {sorted(row)}.")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"Expected the captions of {name!r:.120} ({where}) to be text.")
        yield Row(where, name, texts, facts(row, "file_name", *TEXT_COLUMNS))


def texts_of(row: Mapping[str, Any]) -> list[Any]:
    """What a row has as captions."""
    told: Any = next((row[name] for name in TEXT_COLUMNS if row.get(name) is not None), [])
    return told if isinstance(told, list) else [told]


def table_rows(file: str, content: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by the line at which they begin, of JSONL or of CSV as RFC 4180 has it."""
    text = decoded(content, file)
    if file.lower().endswith(".csv"):
        yield from _csv_rows(file, text)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"Expected JSON in row {number:,} of {file}: {error}.") from None
            if not isinstance(row, dict):
                raise ValueError(f"Expected names with values in row {number:,} of {file}.")
            yield number, row


def _csv_rows(file: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    while True:
        number = table.line_num + 1
        try:
            row = next(table, None)
        except csv.Error as error:
            raise ValueError(
                f"Expected CSV in row {number:,} of {file}: {error}; a quote that opens is closed."
            ) from None
        if row is None:
            return
        if columns and row:
            if len(row) != len(columns):
                raise ValueError(
                    f"Expected {len(columns)} values in row {number:,} of {file}, found "
                    f"{len(row)}; put a text that has commas between quotes."
                )
            yield number, dict(zip(columns, row, strict=True))
        elif row:
            columns = row
            if "file_name" not in columns or not {*TEXT_COLUMNS} & {*columns}:
                raise ValueError(f"Expected columns file_name and text in {file}, found {columns}.")


def _sidecar_rows(images: Mapping[str, Path]) -> Iterator[Row]:
    for name, path in images.items():
        own = next((s for s in map(path.with_suffix, SIDECARS) if s.is_file()), None)
        yield Row(name, name, lines_of(own) if own else [], {})
