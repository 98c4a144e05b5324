"""Training examples as tensors: every caption encoded and every coarse image tokenized once."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from dpwg.data.avatars import IMAGE_SIZE
from dpwg.data.records import Records
from dpwg.device import fast_autocast
from dpwg.method.captions import TextEncoder
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.method.wavelet import coarse_image
from dpwg.training.mapped import Shapes, filling
from dpwg.training.run_state import fingerprint, keep_private

CHUNK = 50
TEXTS = 256
"""Captions that are encoded at once."""
PADDED = 8
"""Captions are padded to a multiple of so many tokens while they are encoded."""
FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What WaveletGPT trains on: caption states and mask, and the codes of every scale."""

    states_BLD: Tensor
    mask_BL: Tensor
    codes: list[Tensor]

    def __len__(self) -> int:
        return len(self.mask_BL)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; to a GPU from pinned memory, while the CPU goes on."""

        def moved(x: Tensor) -> Tensor:
            if device.type == "cuda":
                return x.pin_memory().to(device, non_blocking=True)
            return x.to(device)

        return Batch(
            states_BLD=moved(self.states_BLD),
            mask_BL=moved(self.mask_BL),
            codes=[moved(index_BPK) for index_BPK in self.codes],
        )


class Examples:
    """All records of a set, one example a record.

    A record is one image with its captions, or all images of a group: `group_I` numbers the group
    of each image from 0. However many images and captions a record has, each visit draws one image
    and one of its captions, so that a record is one loss and one gradient. `digest` says which
    records these are.

    `captions` hold each different caption once, and of it the tokens that it has: `tokens` (T, D)
    one caption behind the other, their `length` (R,), and `row` (C,), the caption behind each of
    the records' `count` (I,) captions; or, of a small set, padded `states` (C, L, D) and `mask`.
    """

    def __init__(
        self,
        captions: dict[str, Tensor],
        codes: dict[str, Tensor],
        *,
        digest: str = "",
        group_I: Tensor | None = None,
    ) -> None:
        self.digest = digest
        if "states" in captions:
            captions = unpadded(captions)
        self._tokens_TD, self._length_R = captions["tokens"], captions["length"]
        self._token_R = self._length_R.cumsum(0) - self._length_R
        self._row_C, self._count_I = captions["row"], captions["count"]
        self._first_I = self._count_I.cumsum(0) - self._count_I
        self._empty_states_LD, self._empty_mask_L = captions["empty_states"], captions["empty_mask"]
        self._codes = [codes[name] for name in sorted(codes)]
        if (self._count_I < 1).any():
            record = int((self._count_I < 1).nonzero()[0])
            raise ValueError(f"Expected a caption or more of every record, found none of {record}.")
        if len(self._count_I) != len(self._codes[0]):
            raise ValueError(
                f"Expected captions of {len(self._codes[0])} records, found {len(self._count_I)}; "
                "encode captions and images of the same set."
            )
        if group_I is None:
            group_I = torch.arange(len(self._count_I))
        if len(group_I) != len(self._count_I):
            raise ValueError(
                f"Expected a group of each of {len(self._count_I)} images, found {len(group_I)}."
            )
        self._image_I = group_I.argsort(stable=True)
        self._images_N = group_I.bincount()
        self._place_N = self._images_N.cumsum(0) - self._images_N
        if (self._images_N < 1).any():
            group = int((self._images_N < 1).nonzero()[0])
            raise ValueError(f"Expected an image or more of every group, found none of {group}.")

    def __len__(self) -> int:
        return len(self._images_N)

    @property
    def dtype(self) -> torch.dtype:
        """Of the captions' states."""
        return self._tokens_TD.dtype

    @property
    def images(self) -> int:
        """How many images there are in all records."""
        return int(self._images_N.sum())

    @property
    def cut(self) -> int:
        """How many captions fill all that the text encoder reads; what is behind is cut off."""
        return int((self._length_R[self._row_C] >= len(self._empty_mask_L)).sum())

    @property
    def repeated(self) -> int:
        """How many records hold an image that another one holds too, as their codes tell: private.

        The promise is made to each record; of what is in k of them epsilon is k times as large, or
        more at the same delta.
        """
        own_I = self._image_I[: self.images]
        codes_IC = torch.cat([scale_IPK.flatten(1)[own_I] for scale_IPK in self._codes], dim=1)
        rows_I = codes_IC.numpy().view(np.dtype((np.void, codes_IC[0].nbytes)))
        _, image_I = np.unique(rows_I, return_inverse=True)
        record_I = np.repeat(np.arange(len(self)), self._images_N.numpy())
        pairs = np.unique(np.stack((image_I.ravel(), record_I), axis=1), axis=0)
        held_I = np.bincount(pairs[:, 0])[pairs[:, 0]]
        return len(np.unique(pairs[held_I > 1, 1]))

    def first(self, count: int) -> Examples:
        """The first `count` examples, without copying."""
        part = copy.copy(self)
        part._images_N, part._place_N = self._images_N[:count], self._place_N[:count]
        part.digest = ""
        return part

    def first_codes(self, scale: int) -> Tensor:
        """The codes of one scale of each record's first image, (N, positions, codes)."""
        return self._codes[scale][self._image_I[self._place_N]].long()

    def batch(
        self, indices_B: Tensor, *, draw_B: Tensor | None = None, dropped_B: Tensor | None = None
    ) -> Batch:
        """The examples at these indices.

        `draw_B` in [0, 1) picks one of each record's images and of that one's captions, the first
        without it; captions that are `dropped_B` are empty.
        """
        if draw_B is None:
            draw_B = torch.zeros(len(indices_B), dtype=torch.float64)
        scaled_B = draw_B * self._images_N[indices_B]
        image_B = self._image_I[self._place_N[indices_B] + scaled_B.long()]
        caption_B = self._first_I[image_B] + (scaled_B.frac() * self._count_I[image_B]).long()
        row_B = self._row_C[caption_B]
        place_L = torch.arange(len(self._empty_mask_L))
        mask_BL = place_L < self._length_R[row_B, None]
        states_BLD = torch.zeros(*mask_BL.shape, self._tokens_TD.shape[1], dtype=self.dtype)
        states_BLD[mask_BL] = self._tokens_TD[(self._token_R[row_B, None] + place_L)[mask_BL]]
        if dropped_B is not None:
            states_BLD[dropped_B], mask_BL[dropped_B] = self._empty_states_LD, self._empty_mask_L
        codes = [scale_IPK[image_B].long() for scale_IPK in self._codes]
        return Batch(states_BLD=states_BLD, mask_BL=mask_BL, codes=codes)


def prepare_examples(
    records: Records,
    encoder: TextEncoder,
    tokenizer: SpectralTokenizer,
    cache: Path,
    *,
    group_I: Tensor | None = None,
    coarse_NCHW: Tensor | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Examples:
    """Encode a set's captions and images, or open what an earlier call left in `cache`.

    Files are named by the digests of the set, the encoder and the tokenizer. Those of a private set
    are private. `group_I` joins images to records, see `Examples`; their digest says so. `progress`
    is called with the stage, and the records done and in all. `coarse_NCHW` are the coarse images,
    uint8, where they have been made already.
    """
    keep_private(cache)
    text = f"{encoder.digest[:12]}-{encoder.max_tokens}-{FORMAT}"
    captions = cache / f"{_stem(records)}-captions-{text}.safetensors"
    if not captions.exists():
        for done in encode_captions(records, encoder, captions):
            progress("captions", done, len(records))
    codes = prepare_codes(records, tokenizer, cache, coarse_NCHW=coarse_NCHW, progress=progress)
    digest = joined_digest(records.digest, group_I)
    return Examples(load_file(captions), codes, digest=digest, group_I=group_I)


def prepare_codes(
    records: Records,
    tokenizer: SpectralTokenizer,
    cache: Path,
    *,
    coarse_NCHW: Tensor | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, Tensor]:
    """The codes of a set's images by the name of their scale, as `prepare_examples` keeps them."""
    keep_private(cache)
    name = f"{_stem(records)}-codes-{fingerprint(tokenizer)[:12]}-{FORMAT}.safetensors"
    if not (cache / name).exists():
        for done in encode_images(records, tokenizer, cache / name, coarse_NCHW):
            progress("images", done, len(records))
    return load_file(cache / name)


def _stem(records: Records) -> str:
    return f"{records.name}-{records.digest[:12]}"


def joined_digest(digest: str, group_I: Tensor | None) -> str:
    """What tells a set from others whose images are joined in another way, or not at all."""
    if group_I is None:
        return digest
    joined = digest.encode() + group_I.long().numpy().tobytes()
    return f"groups-{hashlib.sha256(joined).hexdigest()}"


def encode_captions(records: Records, encoder: TextEncoder, path: Path) -> Iterator[int]:
    """Write the caption tensors of a set to `path`, bfloat16; yields how many records are done.

    They are never in memory as a whole: those of a large set, ten captions an image, do not fit.
    """
    own = [captions_of(records, index) for index in range(len(records))]
    texts = _Texts([caption for one in own for caption in one], encoder)
    with filling(path, texts.shapes(len(own))) as tensors:
        tensors["count"].copy_(torch.tensor([len(one) for one in own]))
        for done in texts.encode(tensors):
            yield done * len(records) // len(texts.captions)


def encode_texts(
    captions: Sequence[str],
    counts: Sequence[int],
    encoder: TextEncoder,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """The same tensors in memory, of captions one behind the other, `counts` of each record."""
    texts = _Texts(captions, encoder)
    tensors = {
        name: torch.zeros(shape, dtype=dtype)
        for name, (dtype, shape) in texts.shapes(len(counts)).items()
    }
    tensors["count"].copy_(torch.tensor(counts))
    for done in texts.encode(tensors):
        progress(done, len(texts.captions))
    return tensors


class _Texts:
    """Captions, each of those that differ once, on their way through an encoder.

    A caption is encoded in a pass of fixed size, padded to a length that follows from its own, so
    that no caption's states depend on the others'.
    """

    def __init__(self, captions: Sequence[str], encoder: TextEncoder) -> None:
        number: dict[str, int] = {}
        self._encoder = encoder
        self._row_C = torch.tensor([number.setdefault(c, len(number)) for c in captions])
        self.captions = list(number)
        lengths = [
            length
            for start in range(0, len(number), 10_000)
            for length in encoder.lengths(self.captions[start : start + 10_000])
        ]
        self._length_R = torch.tensor(lengths, dtype=torch.int64)

    def shapes(self, records: int) -> Shapes:
        """The tensors that `encode` fills, and `count`."""
        encoder = self._encoder
        return {
            "tokens": (torch.bfloat16, (int(self._length_R.sum()), encoder.width)),
            "length": (torch.int64, (len(self.captions),)),
            "row": (torch.int64, (len(self._row_C),)),
            "count": (torch.int64, (records,)),
            "empty_states": (torch.bfloat16, (encoder.max_tokens, encoder.width)),
            "empty_mask": (torch.bool, (encoder.max_tokens,)),
        }

    def encode(self, tensors: dict[str, Tensor]) -> Iterator[int]:
        """Fill them; yields how many captions are done."""
        encoder, length_R = self._encoder, self._length_R
        tensors["length"].copy_(length_R)
        tensors["row"].copy_(self._row_C)
        empty = encoder.encode([""])
        tensors["empty_states"].copy_(empty.states_BLD[0])
        tensors["empty_mask"].copy_(empty.mask_BL[0])
        first_R, done = length_R.cumsum(0) - length_R, 0
        padded_R = (-(-length_R // PADDED) * PADDED).clamp(max=encoder.max_tokens)
        for length in padded_R.unique().tolist():
            for chunk_B in (padded_R == length).nonzero().flatten().split(TEXTS):
                texts = [self.captions[index] for index in chunk_B.tolist()]
                with fast_autocast(encoder.device):
                    encoded = encoder.encode([*texts, *[""] * (TEXTS - len(texts))], length=length)
                mask_BL = torch.arange(length) < length_R[chunk_B, None]
                place_BL = first_R[chunk_B, None] + torch.arange(length)
                states_BLD = encoded.states_BLD[: len(texts)].bfloat16()
                tensors["tokens"][place_BL[mask_BL]] = states_BLD[mask_BL]
                done += len(texts)
                yield done


def captions_of(records: Records, index: int) -> tuple[str, ...]:
    """A record's captions, without reading its image where the set allows it."""
    entries = getattr(records, "entries", None)
    return records[index].captions if entries is None else entries[index].captions


def unpadded(captions: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of padded captions as `Examples` holds them."""
    mask_CL = captions["mask"]
    kept = {name: captions[name] for name in ("count", "empty_states", "empty_mask")}
    return {
        **kept,
        "tokens": captions["states"][mask_CL],
        "length": mask_CL.sum(1),
        "row": torch.arange(len(mask_CL)),
    }


def encode_images(
    records: Records, tokenizer: SpectralTokenizer, path: Path, coarse_NCHW: Tensor | None = None
) -> Iterator[int]:
    """Write the codes of a set's images to `path`, int16; yields how many records are done."""
    config = tokenizer.config
    shape = (len(records), config.positions, config.codes)
    shapes = {f"codes_{scale}": (torch.int16, shape) for scale in range(config.scales)}
    parts = (
        coarse_batches(records, config.coarse_size, CHUNK)
        if coarse_NCHW is None
        else iter(coarse_NCHW.split(CHUNK))
    )
    done = 0
    with filling(path, shapes) as tensors:
        for image_BCHW in parts:
            count = len(image_BCHW)
            padded_BCHW = torch.cat((image_BCHW, image_BCHW[:1].expand(CHUNK - count, -1, -1, -1)))
            with fast_autocast(torch.device("cpu")):
                indices = tokenizer.encode(padded_BCHW.float() / 255)
            for scale, index_BPK in enumerate(indices):
                codes = tensors[f"codes_{scale}"]
                codes[done : done + count] = index_BPK[:count].to(torch.int16)
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
