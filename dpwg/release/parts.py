"""Parts of a data set on disk: a folder of images, a tar of WebDataset samples or a Parquet file.

The same rows give the same bytes, whoever writes them and when.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
        """All but the image and its number."""
        return {name: v for name, v in asdict(self).items() if name not in ("index", "image_png")}


def encode_png(image_HW3: np.ndarray) -> bytes:
    """A uint8 image as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(path: Path, rows: Sequence[Row]) -> None:
    """A folder of PNG files; their captions belong into the data set's `metadata.jsonl`."""
    path.mkdir()
    for row in rows:
        (path / f"{row.key}.png").write_bytes(row.image_png)


def write_tar(path: Path, rows: Sequence[Row]) -> None:
    """A WebDataset shard: of every sample a .png, a .txt with the caption and a .json with all."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            values = json.dumps(row.values(), ensure_ascii=False).encode()
            sample = {"png": row.image_png, "txt": row.text.encode(), "json": values}
            for suffix, data in sample.items():
                member = tarfile.TarInfo(f"{row.key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """A Parquet file as `datasets` writes it: the column `image` opens as pictures."""
    import pyarrow
    from pyarrow import parquet

    integers = ("seed", "caption_index", "image_index")
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features["text"] = {"dtype": "string", "_type": "Value"}
    features |= {name: {"dtype": "int64", "_type": "Value"} for name in integers}
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    columns = {"image": image, "text": pyarrow.string()}
    schema = pyarrow.schema(
        columns | dict.fromkeys(integers, pyarrow.int64()),
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    images = [{"bytes": row.image_png, "path": f"{row.key}.png"} for row in rows]
    records = [{"image": at, **row.values()} for at, row in zip(images, rows, strict=True)]
    parquet.write_table(pyarrow.Table.from_pylist(records, schema=schema), path)


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the parts of a data set are written, named, found by `datasets`, and shown by it."""

    write: Callable[[Path, Sequence[Row]], None]
    name: str
    found: tuple[str, ...]
    columns: str = "`image`, `text` (the caption), `seed`, `caption_index` and `image_index`."

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
    ),
}
