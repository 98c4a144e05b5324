"""WebDataset: tar shards whose members share a key: `0001.jpg`, `0001.txt`, `0001.json`.

Shards are indexed once and read in place; nothing is unpacked, nor copied as `datasets` would.
Source: the WebDataset format, as img2dataset writes it.
"""

from __future__ import annotations

import functools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpwg.data.files import (
    IMAGE_SUFFIXES,
    NO_IMAGE,
    Entry,
    FileRecords,
    captioned,
    decoded,
    facts,
    name_of,
    named,
    of_one_split,
)
from dpwg.data.folder import TEXT_COLUMNS, texts_of

MAX_TEXT_BYTES = 1 << 20
PATTERNS = ("*.tar",)


def read(path: Path) -> FileRecords:
    """One record a key; captions from its `.txt`, or from `caption(s)` or `text` in its `.json`.

    What else its `.json` says in text or numbers are attributes. Of a folder with shards of several
    splits, those named `train*` are read.
    """
    shards = of_one_split(path, PATTERNS)
    entries = [entry for shard in shards for entry in _entries(shard)]
    return FileRecords(name_of(path), entries, "webdataset", named(shards))


def _entries(shard: Path) -> Iterator[Entry]:
    samples: dict[str, dict[str, Any]] = {}
    status = shard.stat()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                kind = extension.lower()
                if not member.isreg() or member.sparse is not None or not stem:
                    continue
                sample = samples.setdefault(folder + slash + stem, {})
                if f".{kind}" in IMAGE_SUFFIXES:
                    if "image" in sample:
                        raise ValueError(f"Expected one image of {member.name} in {shard}.")
                    sample["image"] = (member.offset_data, member.size)
                elif kind in ("txt", "json"):
                    sample[kind] = _text(tar, member, shard, as_json=kind == "json")
    except tarfile.TarError as error:
        raise ValueError(
            f"Expected an uncompressed tar file at {shard}: {error}; a shard that is cut off has "
            "to be fetched again."
        ) from error
    for key, sample in samples.items():
        offset, size = sample.get("image", (0, 0))
        known = own if isinstance(own := sample.get("json"), dict) else {}
        problem = "" if "image" in sample else NO_IMAGE
        if offset + size > status.st_size:
            problem = f"{NO_IMAGE}, the shard is cut off"
        entry = Entry(
            name=f"{shard.name}:{key}",
            read=functools.partial(_read, shard, offset, size),
            stamp=(status.st_mtime_ns, offset, size),
            attributes=facts(known, *TEXT_COLUMNS),
            problem=problem,
        )
        yield captioned(entry, [sample["txt"]] if "txt" in sample else texts_of(known))


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path, *, as_json: bool) -> Any:
    where = f"{member.name} of {shard}"
    file = tar.extractfile(member)
    if member.size > MAX_TEXT_BYTES or file is None:
        raise ValueError(f"Expected at most {MAX_TEXT_BYTES:,} bytes in {where}.")
    text = decoded(file.read(), where)
    try:
        return json.loads(text) if as_json else text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected JSON in {where}: {error}.") from error


def _read(shard: Path, offset: int, size: int) -> bytes:
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)
