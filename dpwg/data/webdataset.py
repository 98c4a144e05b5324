"""WebDataset: tar shards whose members share a key: `0001.jpg`, `0001.txt`, `0001.json`.

Shards are indexed once and read in place; nothing is unpacked. Source: the WebDataset format, as
img2dataset writes it.
"""

from __future__ import annotations

import functools
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpwg.data.files import (
    IMAGE_SUFFIXES,
    NO_CAPTION,
    NO_IMAGE,
    Entry,
    FileRecords,
    clean,
    one_split,
)

MAX_TEXT_BYTES = 1 << 20


def found_in(path: Path) -> bool:
    """Whether a path is a shard, or a folder of shards."""
    if path.is_file():
        return path.suffix == ".tar"
    return any(path.glob("*.tar"))


def read(path: Path) -> FileRecords:
    """One record a key; captions from its `.txt`, or from `caption(s)` or `text` in its `.json`.

    What else its `.json` says in text or whole numbers are attributes. Of a folder with shards of
    several splits, those named `train*` are read.
    """
    shards = [path] if path.is_file() else sorted(path.glob("*.tar"))
    if not shards:
        raise FileNotFoundError(f"Expected *.tar in {path}; compressed shards cannot be indexed.")
    shards = one_split(shards)
    entries = (entry for shard in shards for entry in _entries(shard))
    source = ", ".join(map(str, shards[:3])) + (f" and {len(shards) - 3} more" * (len(shards) > 3))
    name = path.stem if path.is_file() else path.resolve().name
    return FileRecords(name, entries, form="webdataset", source=source)


@dataclass(kw_only=True)
class _Sample:
    image: tuple[int, int] | None = None
    text: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def _entries(shard: Path) -> Iterator[Entry]:
    samples: dict[str, _Sample] = {}
    status = shard.stat()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isreg() or member.sparse is not None:
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if not stem:
                    continue
                sample = samples.setdefault(folder + slash + stem, _Sample())
                kind = extension.lower()
                if f".{kind}" in IMAGE_SUFFIXES:
                    if sample.image:
                        raise ValueError(f"Expected one image of {member.name} in {shard}.")
                    sample.image = (member.offset_data, member.size)
                elif kind in ("txt", "json"):
                    _add_text(sample, kind, tar, member, shard)
    except tarfile.TarError as error:
        raise ValueError(
            f"Expected an uncompressed tar file at {shard}: {error}; a shard that is cut off has "
            "to be fetched again."
        ) from error
    for key, sample in samples.items():
        offset, size = sample.image or (0, 0)
        captions = clean([sample.text] if sample.text is not None else _captions(sample.facts))
        problem = "" if captions else NO_CAPTION
        if sample.image is None:
            problem = NO_IMAGE
        elif offset + size > status.st_size:
            problem = f"{NO_IMAGE}, the shard is cut off"
        yield Entry(
            name=f"{shard.name}:{key}",
            read=functools.partial(_read, shard, offset, size),
            stamp=(status.st_mtime_ns, offset, size),
            captions=captions,
            attributes={
                name: str(value)
                for name, value in sample.facts.items()
                if isinstance(value, str | int) and name not in ("caption", "text")
            },
            problem=problem,
        )


def _add_text(
    sample: _Sample, kind: str, tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path
) -> None:
    file = tar.extractfile(member)
    if member.size > MAX_TEXT_BYTES or file is None:
        raise ValueError(
            f"Expected at most {MAX_TEXT_BYTES:,} bytes in {member.name} of {shard}, found "
            f"{member.size:,}."
        )
    try:
        text = file.read().decode("utf-8-sig")
        if kind == "txt":
            sample.text = text
            return
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected {kind} as UTF-8 in {member.name} of {shard}: {error}.") from (
            error
        )
    if isinstance(facts, dict):
        sample.facts = facts


def _captions(facts: dict[str, Any]) -> list[str]:
    for name in ("captions", "caption", "text"):
        value = facts.get(name)
        if value is not None:
            return [
                item
                for item in (value if isinstance(value, list) else [value])
                if isinstance(item, str)
            ]
    return []


def _read(shard: Path, offset: int, size: int) -> bytes:
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)
