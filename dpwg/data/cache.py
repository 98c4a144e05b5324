"""Rendered sets on disk: written once by worker processes, checked by digest when opened."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dpwg.data.records import Record
from dpwg.files import whole

CHUNK = 250
COMPARED = 25
"""Records of a set on disk that are drawn again, to see whether it is still what it was."""
FORMAT = 1
FILES = ("images.bin", "records.jsonl")


def cache_root() -> Path:
    """Where rendered sets and training tensors live: DPWG_CACHE, or ~/.cache/dpwg."""
    return Path(os.environ.get("DPWG_CACHE") or Path.home() / ".cache" / "dpwg")


def set_folder(name: str, count: int, *, root: Path | None = None) -> Path:
    """The folder of a rendered set; the count is part of its name."""
    return (root or cache_root()) / f"{name}-{count}"


class RenderedRecords:
    """Records of a rendered set, read from its folder.

    The folder holds `images.bin` (encoded images, one behind the other), `records.jsonl` (a line a
    record: bytes, captions, attributes) and `manifest.json` (count and SHA-256 of both). A folder
    whose files do not match its manifest is refused.
    """

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, expected in manifest["sha256"].items():
            if (found := _sha256(folder / name)) != expected:
                raise ValueError(
                    f"Expected sha256 {expected[:12]}... of {folder / name}, found "
                    f"{found[:12]}...; delete the folder and render it again."
                )
        self.name: str = manifest["name"]
        self.digest = _sha256(folder / "manifest.json")
        with (folder / "records.jsonl").open(encoding="utf-8") as lines:
            self._rows = [json.loads(line) for line in lines]
        self._ends = np.cumsum([row["bytes"] for row in self._rows])
        self._images = np.memmap(folder / "images.bin", dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        row, end = self._rows[index], int(self._ends[index])
        return Record(
            image_bytes=self._images[end - row["bytes"] : end].tobytes(),
            captions=tuple(row["captions"]),
            attributes=row["attributes"],
        )


def render_set(
    name: str,
    count: int,
    make: Callable[[int], Record],
    *,
    root: Path | None = None,
    processes: int | None = None,
) -> Iterator[int]:
    """Render records 0..count-1 of `make` into the cache; yields how many are done.

    `make` is called in worker processes, so it is a module-level function (or a partial of one).
    A set that is there already is left alone, unless `make` draws it in another way by now. The
    folder appears under its name only when whole.
    """
    folder = set_folder(name, count, root=root)
    if (folder / "manifest.json").exists():
        there = RenderedRecords(folder)
        if all(there[index] == make(index) for index in range(min(COMPARED, len(there)))):
            yield count
            return
    context = multiprocessing.get_context("spawn")
    with whole(folder) as partial:
        partial.mkdir()
        with (
            (partial / FILES[0]).open("wb") as images,
            (partial / FILES[1]).open("w", encoding="utf-8") as lines,
            context.Pool(processes or os.cpu_count()) as pool,
        ):
            for done, record in enumerate(pool.imap(make, range(count), CHUNK), start=1):
                images.write(record.image_bytes)
                row = {
                    "bytes": len(record.image_bytes),
                    "captions": record.captions,
                    "attributes": dict(record.attributes),
                }
                lines.write(json.dumps(row) + "\n")
                if done % CHUNK == 0 or done == count:
                    yield done
        digests = {file: _sha256(partial / file) for file in FILES}
        manifest = {"format": FORMAT, "name": name, "count": count, "sha256": digests}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
