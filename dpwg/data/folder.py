"""Your own images: a folder with `metadata.jsonl` or `metadata.csv`, the ImageFolder convention."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpwg.data.files import IMAGE_SUFFIXES, FileRecords, file_entry, inside, read_text

METADATA = ("metadata.jsonl", "metadata.csv")


def found_in(path: Path) -> bool:
    """Whether a path is such a folder."""
    return any((path / name).is_file() for name in METADATA)


def read(folder: Path) -> FileRecords:
    """Records of a folder; each row of its metadata has `file_name` and `text`.

    `text` is a caption, or a list of them. Rows of the same file are one record. Other columns are
    attributes, as far as the rows of a file agree. Files outside the folder are refused by name.
    """
    metadata = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if metadata is None:
        raise FileNotFoundError(
            f"Expected {' or '.join(METADATA)} in {folder}, with file_name and text a row."
        )
    texts: dict[Path, list[str]] = {}
    facts: dict[Path, dict[str, str]] = {}
    columns: set[str] = set()
    for line, row in rows(metadata):
        where = f"row {line} of {metadata.name}"
        columns |= {key for key in row if isinstance(key, str)}
        name, text = row.pop("file_name", None), row.pop("text", None)
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"Expected 'file_name' as text in {where} in {folder}; its other columns are "
                f"{sorted(map(str, row))}."
            )
        own = text if isinstance(text, list) else [] if text is None else [text]
        if not all(isinstance(item, str) for item in own):
            raise ValueError(f"Expected 'text' as text in {where} in {folder}.")
        path = inside(folder, name, where)
        known = {
            key: str(value)
            for key, value in row.items()
            if isinstance(key, str) and isinstance(value, str | int) and value != ""
        }
        if path in texts:
            known = {key: value for key, value in known.items() if facts[path].get(key) == value}
        texts.setdefault(path, []).extend(own)
        facts[path] = known
    if texts and "text" not in columns:
        raise ValueError(
            f"Expected a column 'text' with the captions in {metadata}, found {sorted(columns)}; "
            "rename the one that has them."
        )
    entries = [
        file_entry(str(path.relative_to(folder)), path, own, facts[path])
        for path, own in texts.items()
    ]
    unlisted = sorted(
        str(path.relative_to(folder)) for path in _images_below(folder) if path not in texts
    )
    name = folder.resolve().name
    return FileRecords(name, entries, form="folder", source=str(metadata), unlisted=unlisted)


def rows(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The metadata's rows with their line numbers."""
    lines = read_text(metadata).splitlines(keepends=True)
    if metadata.suffix.lower() == ".csv":
        table = csv.DictReader(lines)
        try:
            for row in table:
                yield table.line_num, dict(row)
        except csv.Error as error:
            raise ValueError(f"Expected CSV in row {table.line_num} of {metadata}: {error}.") from (
                error
            )
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"Expected JSON in row {number} of {metadata}: {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"Expected a JSON object in row {number} of {metadata}.")
        yield number, row


def _images_below(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield Path(place, name)
