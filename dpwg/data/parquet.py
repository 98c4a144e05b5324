"""Parquet as `datasets` writes it: an image column {bytes, path} and a column of captions.

Needs pyarrow, which `datasets` brings along; nothing else here does.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpwg.data.files import NO_CAPTION, Entry, FileRecords, clean, inside, one_split

TEXT_COLUMNS = ("text", "caption", "captions")


def found_in(path: Path) -> bool:
    """Whether a path is a Parquet file, or a folder with such files, in `data` maybe."""
    if path.is_file():
        return path.suffix == ".parquet"
    return any(_files(path))


def read(path: Path) -> FileRecords:
    """One record a row; the text column is `text`, `caption` or `captions`, texts or lists of them.

    Other columns of text or whole numbers are attributes. Of a folder with files of several splits,
    those named `train*` are read. Images that lie beside the file are read from there.
    """
    files = [path] if path.is_file() else _files(path)
    if not files:
        raise FileNotFoundError(f"Expected *.parquet or data/*.parquet in {path}.")
    files = one_split(files)
    entries = (entry for file in files for entry in _entries(file))
    source = ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" * (len(files) > 3))
    name = path.stem if path.is_file() else path.resolve().name
    return FileRecords(name, entries, form="parquet", source=source)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))


class _Shard:
    """A Parquet file's image column; the row group that was read last stays in memory."""

    def __init__(self, file: Any, path: Path, column: str) -> None:
        self._file, self._path, self._column = file, path, column
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._ends = list(itertools.accumulate(rows))
        self._held: tuple[int, Any] = (-1, None)

    def image(self, row: int) -> bytes:
        group = bisect.bisect_right(self._ends, row)
        if group != self._held[0]:
            table = self._file.read_row_group(group, columns=[self._column])
            self._held = (group, table.column(self._column))
        column = self._held[1]
        value = column[row - self._ends[group] + len(column)].as_py()
        own = value if isinstance(value, dict) else {"bytes": value}
        if own.get("bytes") is not None:
            return bytes(own["bytes"])
        where = f"row {row} of {self._path.name}"
        if not own.get("path"):
            raise ValueError(f"Expected an image in {where}, found none.")
        return inside(self._path.parent, own["path"], where).read_bytes()


def _entries(path: Path) -> Iterator[Entry]:
    try:
        from pyarrow import ArrowException, parquet, types
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"Reading {path} needs pyarrow: pip install pyarrow.") from error
    try:
        file = parquet.ParquetFile(path)
    except ArrowException as error:
        raise ValueError(f"Expected a Parquet file at {path}: {error}.") from error
    schema = file.schema_arrow
    images = [
        column.name
        for column in schema
        if (
            types.is_struct(column.type)
            and {"bytes", "path"} <= {own.name for own in column.type.fields}
        )
        or (column.name == "image" and types.is_binary(column.type))
    ]
    text = next((name for name in TEXT_COLUMNS if name in schema.names), None)
    if len(images) != 1 or text is None:
        raise ValueError(
            f"Expected one image column and one of {', '.join(TEXT_COLUMNS)} in {path}, found "
            f"{', '.join(schema.names)}."
        )
    facts = [
        column.name
        for column in schema
        if column.name != text
        and (
            types.is_string(column.type)
            or types.is_large_string(column.type)
            or types.is_integer(column.type)
            or types.is_boolean(column.type)
        )
    ]
    shard, modified = _Shard(file, path, images[0]), path.stat().st_mtime_ns
    size = path.stat().st_size
    for row, values in enumerate(file.read(columns=[text, *facts]).to_pylist()):
        told = values.pop(text)
        texts = told if isinstance(told, list) else [told]
        captions = clean(item for item in texts if isinstance(item, str))
        yield Entry(
            name=f"{path.name}:{row}",
            read=functools.partial(shard.image, row),
            stamp=(modified, size, row),
            captions=captions,
            attributes={n: str(v) for n, v in values.items() if v is not None and v != ""},
            problem="" if captions else NO_CAPTION,
        )
