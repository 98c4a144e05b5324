"""Parquet as `datasets` and polars write it: an image column and a column of captions.

Rows are read in place: `datasets` would copy every image into a cache of its own first.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpwg.data.files import (
    Entry,
    FileRecords,
    captioned,
    facts,
    inside,
    name_of,
    named,
    of_one_split,
)
from dpwg.data.folder import TEXT_COLUMNS, texts_of

PATTERNS = ("*.parquet", "data/*.parquet")


def read(path: Path) -> FileRecords:
    """One record a row; the text column is `text`, `caption` or `captions`, texts or lists of them.

    Other columns of text or numbers are attributes. Of a folder with files of several splits, those
    named `train*` are read. Images that lie beside the file are read from there.
    """
    files = of_one_split(path, PATTERNS)
    entries = [entry for file in files for entry in _entries(file)]
    return FileRecords(name_of(path), entries, "parquet", named(files))


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
        if own["bytes"] is not None:
            return bytes(own["bytes"])
        where = f"row {row} of {self._path.name}"
        if not own.get("path"):
            raise ValueError(f"Expected an image in {where}, found none.")
        return (self._path.parent / inside(own["path"], where)).read_bytes()


def _entries(path: Path) -> Iterator[Entry]:
    import pyarrow
    from pyarrow import parquet, types

    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"Expected a Parquet file at {path}: {error}.") from error
    kinds = {column.name: column.type for column in file.schema_arrow}
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view)
    images = [
        name
        for name, kind in kinds.items()
        if any(test(kind) for test in binary)
        or (types.is_struct(kind) and {"bytes", "path"} <= {own.name for own in kind.fields})
    ]
    texts = [name for name in TEXT_COLUMNS if name in kinds]
    if len(images) > 1:
        images = [name for name in images if name == "image"]
    if not (images and texts):
        raise ValueError(
            f"Expected an image column, named `image` if there are several, and one of "
            f"{', '.join(TEXT_COLUMNS)} in {path}, found {', '.join(kinds)}."
        )
    told = [
        name for name, kind in kinds.items() if name not in images and not types.is_nested(kind)
    ]
    shard, status = _Shard(file, path, images[0]), path.stat()
    for row, values in enumerate(file.read(columns=[*{*texts, *told}]).to_pylist()):
        entry = Entry(
            name=f"{path.name}:{row}",
            read=functools.partial(shard.image, row),
            stamp=(status.st_mtime_ns, status.st_size, row),
            attributes=facts(values, *texts),
        )
        yield captioned(entry, texts_of(values))
