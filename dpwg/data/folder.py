"""Your own images: a folder with `metadata.jsonl` or `metadata.csv`, the ImageFolder convention."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from dpwg.data.records import Record


class FolderRecords:
    """Records of a folder; each row of the metadata has `file_name` and `text`.

    Rows of the same file are captions of one record. Files outside the folder, missing files and
    rows without a caption are refused by name, before anything is trained.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.resolve().name
        captions: dict[Path, list[str]] = {}
        for line, row in rows(_metadata(folder)):
            for column in ("file_name", "text"):
                if not isinstance(row.get(column), str) or not row[column]:
                    raise ValueError(f"Expected {column!r} as text in row {line} of {folder}.")
            path = (folder / row["file_name"]).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise ValueError(
                    f"Expected file_name={row['file_name']!r} (row {line}) inside {folder}."
                )
            if not path.is_file():
                raise FileNotFoundError(f"{path} (row {line} of the metadata) is not there.")
            captions.setdefault(path, []).append(row["text"])
        if not captions:
            raise ValueError(f"Expected at least one row in the metadata of {folder}.")
        self._captions = list(captions.items())
        digest = hashlib.sha256()
        for path, own in self._captions:
            status = path.stat()
            digest.update(repr((path.name, status.st_size, status.st_mtime_ns, own)).encode())
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._captions)

    def __getitem__(self, index: int) -> Record:
        path, captions = self._captions[index]
        return Record(image_bytes=path.read_bytes(), captions=tuple(captions))


def rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a `metadata.jsonl` or `metadata.csv` with their line numbers."""
    if path.suffix.lower() == ".csv":
        with path.open(newline="") as file:
            yield from enumerate(csv.DictReader(file), start=2)
        return
    with path.open() as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"Expected JSON in row {number} of {path}: {error}.") from error
            if not isinstance(row, dict):
                raise ValueError(f"Expected names with values in row {number} of {path}.")
            yield number, row


def _metadata(folder: Path) -> Path:
    for name in ("metadata.jsonl", "metadata.csv"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(
        f"Expected metadata.jsonl or metadata.csv in {folder}, with file_name and text a row."
    )
