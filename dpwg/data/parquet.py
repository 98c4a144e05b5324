"""Parquet as `datasets` and polars write it: an image column and a column of captions.

Rows are read in place: `datasets` would copy every image into a cache of its own first.
"""

from __future__ import annotations

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
    status, where, folder = path.stat(), f"row {{}} of {path.name}", path.parent
    numbers = itertools.count()

    @functools.lru_cache(maxsize=1)
    def images_of(group: int) -> Any:
        return file.read_row_group(group, columns=images).column(0)

    def image(group: int, place: int, row: int) -> bytes:
        value = images_of(group)[place].as_py()
        own = value if isinstance(value, dict) else {"bytes": value}
        if own["bytes"] is None and own.get("path"):
            return (folder / inside(own["path"], where.format(row))).read_bytes()
        if own["bytes"] is None:
            raise ValueError(f"Expected an image in {where.format(row)}, found none.")
        return bytes(own["bytes"])

    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=[*{*texts, *told}]).to_pylist()
        for place, (values, row) in enumerate(zip(table, numbers, strict=False)):
            entry = Entry(
                name=f"{path.name}:{row}",
                read=functools.partial(image, group, place, row),
                stamp=(status.st_mtime_ns, status.st_size, row),
                attributes=facts(values, *texts),
            )
            yield captioned(entry, texts_of(values))
