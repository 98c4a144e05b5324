"""Do the pictures have the colours that their captions name? For the synthetic faces.

Every caption of `faces-test` names the colours of skin, clothes, background, and hair or hat, and
the record's own picture shows where each part usually lies. A drawn picture's colour of a part is
its median over that place; it follows the caption if, of all colours that a caption may name for
the part, the named one is nearest to it in CIELAB (CIE 1976). A part that hardly shows in the
record's own picture is left out. Place and shape are not judged, so hair that is drawn shorter
than the record's can count as background: the score of the records' own codes says how far the
measure itself can be met.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dpwg.data.faces import named_colours
from dpwg.data.records import Record, Records
from dpwg.method.pipeline import DPWaveletPipeline, to_uint8
from dpwg.method.sampling import Sampling
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.method.wavelet import coarse_image
from dpwg.upsampling.upsamplers import Upsampler

LEAST_PIXELS = 60
"""A part with fewer pixels of exactly its colour is left out, of 128 x 128."""
EXACT = 2
"""How far, of 255 a channel, a pixel of a record's own picture may be from its part's colour."""
BATCH = 10
_LINEAR_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
     [0.0193339, 0.1191920, 0.9503041]]
)  # fmt: skip
_WHITE_D65 = np.array([0.95047, 1.0, 1.08883])


@dataclass(frozen=True, kw_only=True)
class ColourFidelity:
    """Of how many captions the pictures were judged, and which share of named colours they have.

    `parts` holds, by part, of how many captions its colour was judged and the share that is met;
    `all_parts` is the share of pictures with every judged colour of their caption. A part that
    hardly shows in the record's own picture (LEAST_PIXELS) is not judged.
    """

    captions: int
    all_parts: float
    parts: dict[str, tuple[int, float]]

    def to_json(self) -> dict[str, Any]:
        parts = {
            part: {"captions": count, "share": share} for part, (count, share) in self.parts.items()
        }
        return {"captions": self.captions, "all_parts": self.all_parts, "parts": parts}


def colour_fidelity(
    pipeline: DPWaveletPipeline,
    records: Records,
    settings: Sampling,
    count: int,
    upsampler: str | Upsampler,
) -> ColourFidelity:
    """Draw the first captions of the first `count` faces, picture i from seed i, and judge them."""
    verdicts = []
    for start, part in _batches(records, count):
        captions = [record.captions[0] for record in part]
        drawn = pipeline(captions, seed=start, settings=settings, upsampler=upsampler)
        verdicts += list(map(colours_met, part, drawn.image))
    return _summary(verdicts)


def codes_fidelity(
    tokenizer: SpectralTokenizer, upsample: Upsampler, records: Records, count: int
) -> ColourFidelity:
    """The same of the records' own pictures, as their codes and the upsampler give them back."""
    levels = upsample.scale.bit_length() - 1
    verdicts = []
    for _, part in _batches(records, count):
        images = np.stack([record.image() for record in part])
        image_BCHW = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        coarse_BChw = tokenizer.decode(tokenizer.encode(coarse_image(image_BCHW, levels)))
        verdicts += list(map(colours_met, part, to_uint8(upsample(coarse_BChw))))
    return _summary(verdicts)


def colours_met(record: Record, image_HWC: np.ndarray) -> dict[str, bool]:
    """Which of the colours that a face's caption names a picture for it has, by part.

    `image_HWC` is uint8 RGB of the record's size. Raises ValueError for another size, or for a
    record that is not one of the embedded faces.
    """
    own_HWC = record.image().astype(np.int64)
    if image_HWC.shape != own_HWC.shape:
        raise ValueError(
            f"Expected a picture of shape {own_HWC.shape}, as its record, found {image_HWC.shape}."
        )
    try:
        named = named_colours(record.attributes)
    except KeyError as error:
        raise ValueError(
            f"Expected {record.name} to be one of the embedded faces, whose colours are known."
        ) from error
    met = {}
    for part, (palette, name) in named.items():
        place_HW = np.abs(own_HWC - _rgb(palette[name])).max(-1) <= EXACT
        if place_HW.sum() >= LEAST_PIXELS:
            met[part] = _nearest(np.median(image_HWC[place_HW], axis=0), palette) == name
    return met


def _batches(records: Records, count: int) -> Iterator[tuple[int, list[Record]]]:
    count = min(count, len(records))
    for start in range(0, count, BATCH):
        yield start, [records[i] for i in range(start, min(start + BATCH, count))]


def _summary(verdicts: Sequence[Mapping[str, bool]]) -> ColourFidelity:
    by_part: dict[str, list[bool]] = defaultdict(list)
    for met in verdicts:
        for part, answer in met.items():
            by_part[part].append(answer)
    return ColourFidelity(
        captions=len(verdicts),
        all_parts=float(np.mean([all(met.values()) for met in verdicts])),
        parts={part: (len(met), float(np.mean(met))) for part, met in sorted(by_part.items())},
    )


def _nearest(rgb_3: np.ndarray, palette: Mapping[str, str]) -> str:
    names, lab_N3 = _palette_lab(tuple(palette.items()))
    return names[int(np.linalg.norm(lab_N3 - _lab(rgb_3), axis=1).argmin())]


@functools.cache
def _palette_lab(palette: tuple[tuple[str, str], ...]) -> tuple[list[str], np.ndarray]:
    return [name for name, _ in palette], np.stack([_lab(_rgb(code)) for _, code in palette])


def _rgb(code: str) -> np.ndarray:
    """ "#rrggbb" as three integers."""
    return np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)])


def _lab(rgb_3: np.ndarray) -> np.ndarray:
    """An sRGB colour, 0 to 255 a channel, in CIELAB under D65."""
    encoded = np.asarray(rgb_3, dtype=np.float64) / 255
    linear = np.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)
    x, y, z = (
        np.cbrt(t) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116
        for t in _LINEAR_TO_XYZ @ linear / _WHITE_D65
    )
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
