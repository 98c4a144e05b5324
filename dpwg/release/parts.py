"""Parts of a data set on disk: each appears under its name in one operation, whole, or not at all.

A part is a folder of images, a tar of WebDataset samples or a Parquet file. The same rows give the
same bytes, whoever writes them and when.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image of a data set, encoded, with what it was drawn from. `index` counts all images."""

    index: int
    image_png: bytes
    text: str
    seed: int
    caption_index: int
    image_index: int

    @property
    def key(self) -> str:
        """The image's name without its ending."""
        return f"{self.index:08d}"

    def values(self) -> dict[str, Any]:
        """All but the image."""
        return {
            "text": self.text,
            "seed": self.seed,
            "caption_index": self.caption_index,
            "image_index": self.image_index,
        }


def encode_png(image_HW3: np.ndarray) -> bytes:
    """A uint8 image as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(path: Path, rows: Sequence[Row]) -> None:
    """A folder of PNG files; their captions belong into the data set's `metadata.jsonl`."""
    path.mkdir()
    for row in rows:
        _write(path / f"{row.key}.png", row.image_png)


def write_tar(path: Path, rows: Sequence[Row]) -> None:
    """A WebDataset shard: of every sample a .png, a .txt with the caption and a .json with all."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            values = json.dumps(row.values(), ensure_ascii=False).encode()
            for suffix, data in (
                ("png", row.image_png),
                ("txt", row.text.encode()),
                ("json", values),
            ):
                member = tarfile.TarInfo(f"{row.key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    _write(path, buffer.getvalue())


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """A Parquet file as `datasets` writes it: the column `image` opens as pictures."""
    import pyarrow
    from pyarrow import parquet

    integers = ("seed", "caption_index", "image_index")
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features["text"] = {"dtype": "string", "_type": "Value"}
    features |= {name: {"dtype": "int64", "_type": "Value"} for name in integers}
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema(
        [
            ("image", image),
            ("text", pyarrow.string()),
            *((name, pyarrow.int64()) for name in integers),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    table = pyarrow.Table.from_pylist(
        [
            {"image": {"bytes": row.image_png, "path": f"{row.key}.png"}, **row.values()}
            for row in rows
        ],
        schema=schema,
    )
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    _write(path, buffer.getvalue())


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the parts of a data set are written, named, found by `datasets`, and shown by it.

    `needs` is a package that not every installation has.
    """

    write: Callable[[Path, Sequence[Row]], None]
    name: str
    found: tuple[str, ...]
    columns: str = "`image`, `text` (the caption), `seed`, `caption_index` and `image_index`."
    needs: str | None = None

    def path(self, folder: Path, part: int, parts: int) -> Path:
        """Where a part is once it is whole."""
        return folder / self.name.format(part=part, parts=parts)


FORMATS = {
    "imagefolder": Format(
        write=write_folder, name="images/{part:05d}", found=("metadata.jsonl", "images/*/*.png")
    ),
    "webdataset": Format(
        write=write_tar,
        name="train-{part:05d}-of-{parts:05d}.tar",
        found=("train-*.tar",),
        columns="`png`, `txt` (the caption) and `json` (`text`, `seed`, `caption_index`, "
        "`image_index`).",
    ),
    "parquet": Format(
        write=write_parquet,
        name="data/train-{part:05d}-of-{parts:05d}.parquet",
        found=("data/train-*.parquet",),
        needs="pyarrow",
    ),
}


def appear(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file or folder elsewhere, then give it its name in one operation.

    What other processes began under that name, and did not live to finish, is removed; one that
    lives finds that this one was first, with the same content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = f".{path.name}.partial-"
    partial = path.with_name(f"{begun}{os.getpid()}")
    _remove(partial)
    write(partial)
    try:
        if not path.is_dir():
            partial.replace(path)
    except FileNotFoundError:
        if not path.exists():
            raise
    for other in path.parent.glob(f"{begun}*"):
        _remove(other)
    _flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """A text file that appears whole."""
    appear(path, lambda partial: _write(partial, text.encode()))


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
