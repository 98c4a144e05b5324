"""Where a family's records come from: the photographs on this machine, or what another packed.

A packed source is two files: `records.safetensors` with the codes of every image, ten bits a code,
and the captions, of which the private ones are as private as the photographs; and `encoder.tar`,
the text encoder in half precision. With the tokenizer and the upsampler, which are public and have
to be trained by then, they are all that the rest of a family is trained from.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpwg.config import TextEncoderId
from dpwg.data.public_photos import CLEANED
from dpwg.data.records import Records, group_numbers
from dpwg.method.captions import TextEncoder
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.training.examples import (
    Examples,
    captions_of,
    coarse_batches,
    encode_texts,
    joined_digest,
    prepare_codes,
    prepare_examples,
)
from dpwg.training.mapped import filling
from dpwg.training.run_state import fingerprint, keep_private

Told = Callable[[str, int, int], None]
"""Is called with a stage, how many are done, and of how many."""


class Source(Protocol):
    """What a recipe needs to know of its records."""

    @property
    def encoder(self) -> TextEncoder: ...

    @property
    def private_records(self) -> int:
        """How many images the private set has."""
        ...

    @property
    def cleaned(self) -> bool:
        """Whether the public photographs are without copies of private ones."""
        ...

    def public_coarse(self, size: int) -> Tensor:
        """Coarse public images, uint8 (N, 3, size, size)."""
        ...

    def public_images(self, size: int, count: int) -> Tensor:
        """At most `count` public images, uint8 (N, 3, size, size)."""
        ...

    def public_examples(self, tokenizer: SpectralTokenizer) -> Examples: ...

    def private_examples(
        self, tokenizer: SpectralTokenizer, group_I: Tensor | None
    ) -> Examples: ...

    def groups(self, column: str) -> Tensor:
        """The number of the group that each private image belongs to."""
        ...


class RecordSource:
    """Records on this machine. What is made of them is kept in `cache`, which is private."""

    def __init__(
        self,
        public: Records,
        private: Records,
        encoder: TextEncoder,
        cache: Path,
        told: Told = lambda stage, done, total: None,
    ) -> None:
        self._public, self._private, self.encoder = public, private, encoder
        self._cache, self._told = cache, told

    @property
    def private_records(self) -> int:
        return len(self._private)

    @property
    def cleaned(self) -> bool:
        return getattr(self._public, "form", "") == CLEANED

    def public_coarse(self, size: int) -> Tensor:
        parts = coarse_batches(self._public, size)
        return self._kept(f"coarse-{size}", size, len(self._public), parts)

    def public_images(self, size: int, count: int) -> Tensor:
        count = min(count, len(self._public))
        images = (torch.tensor(self._public[index].image(size)) for index in range(count))
        parts = (image_HWC.permute(2, 0, 1)[None] for image_HWC in images)
        return self._kept(f"first-{count}-at-{size}", size, count, parts)

    def _kept(self, name: str, size: int, count: int, parts: Iterator[Tensor]) -> Tensor:
        """Public images, uint8 (count, 3, size, size), in a file: decoding takes minutes."""
        keep_private(self._cache)
        public = self._public
        path = self._cache / f"{public.name}-{public.digest[:12]}-{name}.safetensors"
        if not path.exists():
            with filling(path, {"images": (torch.uint8, (count, 3, size, size))}) as tensors:
                done = 0
                for image_BCHW in parts:
                    tensors["images"][done : done + len(image_BCHW)] = image_BCHW
                    done += len(image_BCHW)
                    self._told(f"{public.name} at {size} pixels", done, count)
        return load_file(path)["images"]

    def public_examples(self, tokenizer: SpectralTokenizer) -> Examples:
        coarse_NCHW = self.public_coarse(tokenizer.config.coarse_size)
        return self._examples(self._public, tokenizer, None, coarse_NCHW)

    def private_examples(self, tokenizer: SpectralTokenizer, group_I: Tensor | None) -> Examples:
        return self._examples(self._private, tokenizer, group_I)

    def groups(self, column: str) -> Tensor:
        return torch.tensor(group_numbers(self._private, column))

    def _examples(
        self,
        records: Records,
        tokenizer: SpectralTokenizer,
        group_I: Tensor | None,
        coarse_NCHW: Tensor | None = None,
    ) -> Examples:
        return prepare_examples(
            records,
            self.encoder,
            tokenizer,
            self._cache,
            group_I=group_I,
            coarse_NCHW=coarse_NCHW,
            progress=self._about(records),
        )

    def _about(self, records: Records) -> Told:
        return lambda stage, done, total: self._told(f"{records.name}: {stage}", done, total)

    def pack(self, tokenizer: SpectralTokenizer, columns: tuple[str, ...], folder: Path) -> None:
        """Write the two files of a packed source into a folder, for the same family."""
        tensors: dict[str, Tensor] = {}
        facts = {
            "encoder": json.dumps(self.encoder.id.to_json()),
            "cleaned": "yes" if self.cleaned else "no",
            "tokenizer": fingerprint(tokenizer),
        }
        size = tokenizer.config.coarse_size
        for kind, records in (("public", self._public), ("private", self._private)):
            coarse_NCHW = self.public_coarse(size) if kind == "public" else None
            codes = prepare_codes(
                records,
                tokenizer,
                self._cache,
                coarse_NCHW=coarse_NCHW,
                progress=self._about(records),
            )
            captions = [captions_of(records, index) for index in range(len(records))]
            text = "\n".join(caption for own in captions for caption in own)
            tensors[f"{kind}.count"] = torch.tensor([len(own) for own in captions])
            tensors[f"{kind}.text"] = _bytes(zlib.compress(text.encode(), 9))
            for scale, books in enumerate(tokenizer.config.codebook_sizes):
                codes_IK = codes[f"codes_{scale}"].flatten(1)
                tensors[f"{kind}.codes_{scale}"] = pack_codes(codes_IK, bits_of(books))
            facts[f"{kind}.digest"] = records.digest
        for column in columns:
            tensors[f"group.{column}"] = self.groups(column).int()
        keep_private(folder)
        save_file(tensors, folder / RECORDS, metadata=facts)
        (folder / ENCODER).write_bytes(self.encoder.packed())


RECORDS, ENCODER = "records.safetensors", "encoder.tar"


class PackedSource:
    """What `RecordSource.pack` wrote. It has no images: the parts that need some must be there."""

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        told: Told = lambda stage, done, total: None,
    ) -> None:
        if not (folder / RECORDS).is_file():
            raise FileNotFoundError(f"Expected {RECORDS} in {folder}; make it with --pack.")
        self._tensors, self._told = load_file(folder / RECORDS), told
        self._captions: dict[str, dict[str, Tensor]] = {}
        with safe_open(folder / RECORDS, "pt") as file:
            self._facts: dict[str, str] = file.metadata()
        wanted = TextEncoderId.from_json(json.loads(self._facts["encoder"]))
        with tempfile.TemporaryDirectory() as unpacked:
            with tarfile.open(fileobj=io.BytesIO((folder / ENCODER).read_bytes())) as tar:
                tar.extractall(unpacked, filter="data")
            self.encoder = TextEncoder.from_packed(Path(unpacked), wanted).to(device)

    @property
    def private_records(self) -> int:
        return len(self._tensors["private.count"])

    @property
    def cleaned(self) -> bool:
        return self._facts["cleaned"] == "yes"

    def public_coarse(self, size: int) -> Tensor:
        raise FileNotFoundError(
            "Expected a trained tokenizer beside packed records, found none; train it where the "
            "photographs are."
        )

    def public_images(self, size: int, count: int) -> Tensor:
        raise FileNotFoundError(
            "Expected a trained upsampler beside packed records, found none; train it where the "
            "photographs are."
        )

    def public_examples(self, tokenizer: SpectralTokenizer) -> Examples:
        return self._examples("public", tokenizer, None)

    def private_examples(self, tokenizer: SpectralTokenizer, group_I: Tensor | None) -> Examples:
        return self._examples("private", tokenizer, group_I)

    def groups(self, column: str) -> Tensor:
        return self._tensors[f"group.{column}"].long()

    def _examples(
        self, kind: str, tokenizer: SpectralTokenizer, group_I: Tensor | None
    ) -> Examples:
        if (own := fingerprint(tokenizer)) != self._facts["tokenizer"]:
            named = self._facts["tokenizer"]
            raise ValueError(
                f"Expected the tokenizer {named:.12} of the packed records, found {own:.12}; pack "
                "them again, or take that one."
            )
        count_I = self._tensors[f"{kind}.count"]
        if kind not in self._captions:
            text = zlib.decompress(self._tensors[f"{kind}.text"].numpy().tobytes()).decode()
            self._captions[kind] = encode_texts(
                text.split("\n"),
                count_I.tolist(),
                self.encoder,
                lambda done, total: self._told(f"{kind} captions", done, total),
            )
        config = tokenizer.config
        codes = {
            f"codes_{scale}": unpack_codes(
                self._tensors[f"{kind}.codes_{scale}"],
                bits_of(size),
                config.positions * config.codes,
            ).view(-1, config.positions, config.codes)
            for scale, size in enumerate(config.codebook_sizes)
        }
        digest = joined_digest(self._facts[f"{kind}.digest"], group_I)
        return Examples(self._captions[kind], codes, digest=digest, group_I=group_I)


def bits_of(size: int) -> int:
    """How many bits tell the codes of a codebook apart."""
    return max(1, (size - 1).bit_length())


def pack_codes(codes_NK: Tensor, bits: int) -> Tensor:
    """Codes below 2**bits as bytes, uint8 (N, ceil(K * bits / 8))."""
    places = np.arange(bits)
    bits_NKb = (codes_NK.numpy().astype(np.int64)[..., None] >> places) & 1
    flat = bits_NKb.reshape(len(codes_NK), -1).astype(np.uint8)
    return torch.from_numpy(np.packbits(flat, axis=1))


def unpack_codes(bytes_NB: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack_codes`, int16 (N, count)."""
    flat = np.unpackbits(bytes_NB.numpy(), axis=1, count=count * bits)
    bits_NKb = flat.reshape(len(bytes_NB), count, bits).astype(np.int16)
    return torch.from_numpy((bits_NKb << np.arange(bits, dtype=np.int16)).sum(-1, dtype=np.int16))


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
