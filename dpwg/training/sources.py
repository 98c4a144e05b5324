"""Where a family's records come from: the photographs on this machine, or what another packed.

A packed source is three private files: `records.json.gz` with the captions, `codes.npz` with the
codes of every image, and `encoder.tar`, the text encoder in half precision. With the tokenizer and
the upsampler, which are public and have to be trained by then, they are all that the rest of a
family is trained from.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from dpwg.config import TextEncoderId
from dpwg.data.public_photos import CLEANED
from dpwg.data.records import Record, RecordList, Records, group_numbers
from dpwg.files import private_folder, whole
from dpwg.method.captions import TextEncoder
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.training.encodings import (
    captions_of,
    codes_folder,
    encode_images,
    images_digest,
    open_arrays,
)

RECORDS, CODES, ENCODER = "records.json.gz", "codes.npz", "encoder.tar"


@dataclass(frozen=True)
class Source:
    """A family's public and private records, and what reads their captions.

    What is made of them is kept in `cache`, which is private.
    """

    public: Records
    private: Records
    encoder: TextEncoder
    cache: Path

    @property
    def cleaned(self) -> bool:
        """Whether the public photographs are without copies of private ones."""
        return getattr(self.public, "form", "") == CLEANED

    def pack(self, tokenizer: SpectralTokenizer, columns: tuple[str, ...], folder: Path) -> None:
        """Write a packed source, for the same family and tokenizer, into a private folder."""
        private_folder(folder)
        facts, planes = dict[str, Any](), dict[str, Any]()
        for kind, records in (("public", self.public), ("private", self.private)):
            deque(encode_images(records, tokenizer, self.cache), maxlen=0)
            codes = codes_folder(records, tokenizer, self.cache)
            facts[kind] = {
                "name": records.name,
                "digest": records.digest,
                "images_digest": images_digest(records),
                "form": getattr(records, "form", ""),
                "codes": codes.name,
                "captions": [captions_of(records, index) for index in range(len(records))],
                "groups": {c: group_numbers(records, c) for c in columns if kind == "private"},
            }
            facts[kind]["dtypes"] = {}
            for name, codes_NPK in open_arrays(codes).items():  # high bytes are few, so packed well
                facts[kind]["dtypes"][name] = str(codes_NPK.numpy().dtype)
                low_high = codes_NPK.numpy().view(np.uint8).reshape(*codes_NPK.shape, 2)
                planes[f"{kind}.{name}"] = np.moveaxis(low_high, -1, 0)
        text = json.dumps({"encoder": self.encoder.id.to_json(), **facts}).encode()
        with whole(folder / RECORDS, private=True) as partial:
            partial.write_bytes(gzip.compress(text))
        with whole(folder / CODES, private=True) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **planes)
        with whole(folder / ENCODER, private=True) as partial:
            partial.write_bytes(self.encoder.packed())

    @classmethod
    def packed(cls, folder: Path, device: torch.device) -> Self:
        """What `pack` wrote. It has no images: the parts that need some must be there."""
        if not (folder / RECORDS).is_file():
            raise FileNotFoundError(f"Expected {RECORDS} in {folder}; make it with --pack.")
        private_folder(folder)
        facts = json.loads(gzip.decompress((folder / RECORDS).read_bytes()))
        wanted, cache = TextEncoderId.from_json(facts["encoder"]), folder / "encoded"
        with np.load(folder / CODES) as planes:
            for kind in ("public", "private"):
                with whole(cache / facts[kind]["codes"], private=True) as partial:
                    partial.mkdir()
                    for name in (name for name in planes if name.startswith(f"{kind}.")):
                        low_high = np.ascontiguousarray(np.moveaxis(planes[name], 0, -1))
                        own = name.partition(".")[2]
                        codes_NPK = low_high.view(facts[kind]["dtypes"][own])[..., 0]
                        np.save(partial / f"{own}.npy", codes_NPK)
        with tempfile.TemporaryDirectory() as unpacked:
            with tarfile.open(fileobj=io.BytesIO((folder / ENCODER).read_bytes())) as tar:
                tar.extractall(unpacked, filter="data")
            encoder = TextEncoder.from_packed(Path(unpacked), wanted).to(device)
        return cls(_Packed(facts["public"]), _Packed(facts["private"]), encoder, cache)


class _PackedRecord(Record):
    def image(self, size: int | None = None) -> np.ndarray:
        raise FileNotFoundError(
            "Expected the tokenizer and the upsampler that these records were packed with, as "
            "packed records have no images; train those where the photographs are, or pack again."
        )


class _Packed(RecordList):
    """Records without their images."""

    def __init__(self, facts: dict[str, Any]) -> None:
        columns = facts["groups"]
        records = [
            _PackedRecord(
                image_bytes=b"",
                captions=tuple(captions),
                attributes={column: str(groups[index]) for column, groups in columns.items()},
            )
            for index, captions in enumerate(facts["captions"])
        ]
        super().__init__(facts["name"], facts["digest"], records)
        self.images_digest, self.form = facts["images_digest"], facts["form"]
