"""Every caption encoded and every coarse image tokenized once, kept in files that are mapped.

What is kept of a private set is as private as the set: it lies in folders that its owner alone
reads. A folder appears when it is whole; one that was cut is made again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from dpwg.data.avatars import IMAGE_SIZE
from dpwg.data.cache import cache_root
from dpwg.data.records import Records
from dpwg.device import fast_autocast
from dpwg.files import private_folder, remove, whole
from dpwg.method.captions import TextEncoder
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.method.wavelet import coarse_image
from dpwg.training.examples import Examples
from dpwg.training.optimizer import Progress, finished
from dpwg.training.run_state import fingerprint

CHUNK = 50
TEXTS = 256
"""Captions that are encoded at once."""
PADDED = 8
"""Captions are padded to a multiple of so many tokens while they are encoded."""
FORMAT = 4


def encoded_root() -> Path:
    """Where encodings are kept on this machine: a private folder."""
    return cache_root() / "encoded"


def encode_examples(
    records: Records,
    encoder: TextEncoder,
    tokenizer: SpectralTokenizer,
    cache: Path,
    *,
    group_I: Tensor | None = None,
) -> Generator[Progress, None, Examples]:
    """A set's examples; captions and images are encoded unless `cache` has them.

    `group_I` joins images to records, see `Examples`; their digest says so. Of several processes
    one encodes and the others wait for it on a lock, each machine for itself.
    """
    text = f"{records.digest[:16]}-{encoder.digest[:12]}-{encoder.max_tokens}"
    folder = cache / f"captions-{text}-{FORMAT}"
    yield from kept("captions", folder, len(records), lambda at: _captions(records, encoder, at))
    yield from encode_images(records, tokenizer, cache)
    captions, codes = open_arrays(folder), open_arrays(codes_folder(records, tokenizer, cache))
    digest = records.digest
    if group_I is not None:  # joined in another way, or not at all, they are others
        joined = digest.encode() + group_I.long().numpy().tobytes()
        digest = f"groups-{hashlib.sha256(joined).hexdigest()}"
    return Examples(captions, codes, digest=digest, group_I=group_I)


def encode_images(
    records: Records, tokenizer: SpectralTokenizer, cache: Path
) -> Iterator[Progress]:
    """Tokenize a set's images likewise: codes follow from the images and the tokenizer alone."""
    folder = codes_folder(records, tokenizer, cache)
    coarse = _coarse_folder(records, tokenizer.config.coarse_size, cache)
    return kept("images", folder, len(records), lambda at: _codes(records, tokenizer, at, coarse))


def prepare_examples(*given: Any, **options: Any) -> Examples:
    """What `encode_examples` returns, without its reports."""
    return finished(encode_examples(*given, **options))


def coarse_images(records: Records, size: int, cache: Path) -> Generator[Progress, None, Tensor]:
    """Coarse images in a file, uint8 (N, 3, size, size)."""
    folder, parts = _coarse_folder(records, size, cache), coarse_batches(records, size)
    return (yield from _images("coarse images", folder, (len(records), 3, size, size), parts))


def full_images(
    records: Records, size: int, count: int, cache: Path
) -> Generator[Progress, None, Tensor]:
    """At most the first `count` images in a file, uint8 (N, 3, size, size)."""
    count = min(count, len(records))
    images = (torch.tensor(records[index].image(size)) for index in range(count))
    parts = (image_HWC.permute(2, 0, 1)[None] for image_HWC in images)
    folder = cache / f"first-{count}-at-{size}-{images_digest(records)[:16]}"
    return (yield from _images("full images", folder, (count, 3, size, size), parts))


def _images(
    stage: str, folder: Path, shape: tuple[int, ...], parts: Iterator[Tensor]
) -> Generator[Progress, None, Tensor]:
    """Images in a file: decoding takes minutes."""

    def fill(at: Path) -> Iterator[int]:
        images_NCHW, done = new_array(at, "images", torch.uint8, shape), 0
        for image_BCHW in parts:
            images_NCHW[done : done + len(image_BCHW)] = image_BCHW
            done += len(image_BCHW)
            yield done

    yield from kept(stage, folder, shape[0], fill)
    return open_arrays(folder)["images"]


def images_digest(records: Records) -> str:
    """What tells a set's images from others, whatever their captions."""
    if own := getattr(records, "images_digest", ""):
        return str(own)
    entries = getattr(records, "entries", None)
    if entries is None:
        return records.digest
    known = repr([(entry.name, entry.stamp) for entry in entries])
    return hashlib.sha256(known.encode("utf-8", "surrogatepass")).hexdigest()


def _coarse_folder(records: Records, size: int, cache: Path) -> Path:
    return cache / f"coarse-{size}-{images_digest(records)[:16]}"


def codes_folder(records: Records, tokenizer: SpectralTokenizer, cache: Path) -> Path:
    return cache / f"codes-{images_digest(records)[:16]}-{fingerprint(tokenizer)[:12]}-{FORMAT}"


def kept(
    stage: str, folder: Path, total: int, fill: Callable[[Path], Iterator[int]]
) -> Iterator[Progress]:
    """Let `fill` write arrays into a private folder, unless they are there and whole.

    `fill` gets the folder to write to and yields how many of `total` are done.
    """
    private_folder(folder.parent)
    with FileLock(f"{folder}.lock", mode=0o600, thread_local=False):
        if not _is_whole(folder):
            remove(folder)
            with whole(folder, private=True) as partial:
                partial.mkdir()
                for done in fill(partial):
                    yield Progress(stage=stage, step=done, steps=total)


def _is_whole(folder: Path) -> bool:
    try:
        return bool(open_arrays(folder))
    except (OSError, ValueError, EOFError):  # none, or cut
        return False


def new_array(folder: Path, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor of zeros whose memory is a new file: it may be larger than memory.

    Raises OSError where the disk has no room for it.
    """
    path = folder / (f"{name}.bfloat16.npy" if dtype == torch.bfloat16 else f"{name}.npy")
    held = torch.int16 if dtype == torch.bfloat16 else dtype
    kind = torch.empty(0, dtype=held).numpy().dtype
    array = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
    if hasattr(os, "posix_fallocate"):  # a mapped file that finds no room kills its process
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return torch.from_numpy(array).view(dtype)


def open_arrays(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder by name, mapped; ValueError or OSError where any is cut or none is.

    What is written to them stays in this process.
    """
    arrays = {path.stem: np.load(path, mmap_mode="c") for path in sorted(folder.glob("*.npy"))}
    if not arrays:
        raise FileNotFoundError(f"Expected arrays in {folder}, found none.")
    return {
        name.removesuffix(".bfloat16"): torch.from_numpy(array).view(torch.bfloat16)
        if name.endswith(".bfloat16")
        else torch.from_numpy(array)
        for name, array in arrays.items()
    }


def _captions(records: Records, encoder: TextEncoder, folder: Path) -> Iterator[int]:
    """The caption tensors of `Examples`, bfloat16; yields how many records are done.

    A caption is encoded in a pass of fixed size, padded to a length that follows from its own, so
    that no caption's states depend on the others'.
    """
    own = [captions_of(records, index) for index in range(len(records))]
    number: dict[str, int] = {}
    row_C = torch.tensor([number.setdefault(c, len(number)) for some in own for c in some])
    texts = list(number)
    length_R = torch.tensor(
        [
            length
            for start in range(0, len(texts), 10_000)
            for length in encoder.lengths(texts[start : start + 10_000])
        ],
        dtype=torch.int64,
    )
    empty = encoder.encode([""])
    for name, tensor in {
        "row": row_C,
        "length": length_R,
        "count": torch.tensor([len(some) for some in own]),
        "empty_states": empty.states_BLD[0].bfloat16(),
        "empty_mask": empty.mask_BL[0],
    }.items():
        new_array(folder, name, tensor.dtype, tuple(tensor.shape)).copy_(tensor)
    tokens_TD = new_array(folder, "tokens", torch.bfloat16, (int(length_R.sum()), encoder.width))
    first_R, done = length_R.cumsum(0) - length_R, 0
    padded_R = (-(-length_R // PADDED) * PADDED).clamp(max=encoder.max_tokens)
    for length in padded_R.unique().tolist():
        for chunk_B in (padded_R == length).nonzero().flatten().split(TEXTS):
            chunk = [texts[index] for index in chunk_B.tolist()]
            with fast_autocast(encoder.device):
                encoded = encoder.encode([*chunk, *[""] * (TEXTS - len(chunk))], length=length)
            mask_BL = torch.arange(length) < length_R[chunk_B, None]
            place_BL = first_R[chunk_B, None] + torch.arange(length)
            tokens_TD[place_BL[mask_BL]] = encoded.states_BLD[: len(chunk)].bfloat16()[mask_BL]
            done += len(chunk)
            yield done * len(records) // len(texts)


def captions_of(records: Records, index: int) -> tuple[str, ...]:
    """A record's captions, without reading its image where the set allows it."""
    entries = getattr(records, "entries", None)
    return records[index].captions if entries is None else entries[index].captions


def _codes(
    records: Records, tokenizer: SpectralTokenizer, folder: Path, coarse: Path
) -> Iterator[int]:
    """The codes of every scale, int16, or latents, float16; yields how many records are done.

    They are of the `coarse` images that were kept for the tokenizer, if they were.
    """
    codes: list[Tensor] = []
    if _is_whole(coarse):
        parts = iter(open_arrays(coarse)["images"].split(CHUNK))
    else:
        parts = coarse_batches(records, tokenizer.config.coarse_size, CHUNK)
    done = 0
    for image_BCHW in parts:
        count = len(image_BCHW)
        padded_BCHW = torch.cat((image_BCHW, image_BCHW[:1].expand(CHUNK - count, -1, -1, -1)))
        with fast_autocast(torch.device("cpu")):
            made = tokenizer.encode(padded_BCHW.float() / 255)
        if not codes:
            codes = [
                new_array(
                    folder,
                    f"codes_{number}",
                    torch.float16 if part.is_floating_point() else torch.int16,
                    (len(records), *part.shape[1:]),
                )
                for number, part in enumerate(made)
            ]
        for held, part in zip(codes, made, strict=True):
            held[done : done + count] = part[:count].to(held.dtype)
        done += count
        yield done


def coarse_batches(records: Records, coarse_size: int, batch: int = 250) -> Iterator[Tensor]:
    """Coarse images of all records in order, uint8 (b, 3, coarse_size, coarse_size) a batch.

    Each image is brought to 128x128 first, so that its Haar LL band has the coarse size.
    """
    levels = (IMAGE_SIZE // coarse_size).bit_length() - 1
    for start in range(0, len(records), batch):
        images = [
            torch.tensor(records[index].image(IMAGE_SIZE))
            for index in range(start, min(start + batch, len(records)))
        ]
        image_BCHW = torch.stack(images).permute(0, 3, 1, 2).float()
        yield coarse_image(image_BCHW, levels).round().to(torch.uint8)
