"""Pictures of a release beside real ones: how near the two are, and what is drawn of a caption.

Real photographs against others of the same set are the floor, for a generator that repeats nothing;
their own codes through the release's upsampler are what its private part could reach at best.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpwg.data.avatars import IMAGE_SIZE
from dpwg.data.records import Records
from dpwg.measure.attributes import Reader, balanced_accuracy, captions, labels
from dpwg.measure.features import (
    WIDTH,
    features,
    frechet_distance,
    kernel_distance,
    precision_recall,
    spread,
)
from dpwg.method.pipeline import DPWaveletPipeline, to_uint8
from dpwg.method.sampling import Sampling
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.method.wavelet import coarse_image
from dpwg.training.encodings import captions_of, images_digest, kept, new_array, open_arrays
from dpwg.training.optimizer import Progress
from dpwg.upsampling.upsamplers import Upsampler

BATCH = 50
RESAMPLED = 20
"""Bootstrap resamplings of an interval."""
SAME = 10
"""Captions of which as many pictures are drawn, to see how much those differ."""

Interval = tuple[float, float, float]
"""A value and the limits of its 95 % interval."""


def real_features(
    records: Records, count: int, cache: Path
) -> Generator[Progress, None, np.ndarray]:
    """Features of the first `count` images of a set, kept in `cache`: (count, WIDTH)."""

    def fill(folder: Path) -> Iterator[int]:
        feature_ND = new_array(folder, "features", torch.float32, (count, WIDTH))
        for start in range(0, count, BATCH):
            images = [
                records[row].image(IMAGE_SIZE) for row in range(start, min(start + BATCH, count))
            ]
            feature_ND[start : start + len(images)] = torch.from_numpy(features(np.stack(images)))
            yield start + len(images)

    folder = cache / f"features-{count}-{images_digest(records)[:16]}"
    yield from kept("features of real images", folder, count, fill)
    return open_arrays(folder)["features"].numpy()


def known_of(records: Records, count: int) -> list[dict[str, int]]:
    """The classes of the first records, by CelebA's official attributes."""
    entries = getattr(records, "entries", None) or records
    return [
        labels({name: value == "1" for name, value in entries[row].attributes.items()})
        for row in range(count)
    ]


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """How near a set of pictures is to real ones, each number in EfficientNet's features.

    `frechet` and `kernel` are distances, with intervals over the pictures; `precision` and `recall`
    are shares.
    """

    pictures: int
    frechet: Interval
    kernel: Interval
    precision: float
    recall: float

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)

    @classmethod
    def of(cls, drawn_ND: np.ndarray, real_MD: np.ndarray, seed: int = 0) -> Nearness:
        """Measure pictures by their features."""
        rng = np.random.default_rng(seed)
        rows = [rng.integers(len(drawn_ND), size=len(drawn_ND)) for _ in range(RESAMPLED)]

        def around(measure: Callable[[np.ndarray, np.ndarray], float]) -> Interval:
            """Pictures that come twice move both distances: only how they scatter is taken."""
            value = measure(drawn_ND, real_MD)
            others = np.array([measure(drawn_ND[row], real_MD) for row in rows])
            low, high = np.quantile(others - others.mean(), (0.025, 0.975))
            return value, value + float(low), value + float(high)

        precision, recall = precision_recall(drawn_ND, real_MD)
        return cls(
            pictures=len(drawn_ND),
            frechet=around(frechet_distance),
            kernel=around(kernel_distance),
            precision=precision,
            recall=recall,
        )


@dataclass(frozen=True, kw_only=True)
class Reality:
    """What pictures are measured against: features of real test images, and readers of attributes,
    with how often they are right about test images.
    """

    records: Records
    feature_ND: np.ndarray
    readers: dict[str, Reader]

    def floor(self, count: int) -> Nearness:
        """As many other real images, where there are, against the first `count`."""
        return Nearness.of(self.feature_ND[-count:], self.feature_ND[:count])

    @property
    def reading(self) -> dict[str, float]:
        """Balanced accuracy of the readers on the real test images."""
        known = known_of(self.records, len(self.feature_ND))
        return balanced_accuracy(self.readers, self.feature_ND, known)

    def ceiling(
        self, tokenizer: SpectralTokenizer, upsample: Upsampler, count: int
    ) -> Generator[Progress, None, dict[str, Any]]:
        """The first images as their own codes and the upsampler give them back, beside these very
        images: it may come nearer than the floor.
        """
        levels, found = upsample.scale.bit_length() - 1, []
        for start in range(0, count, BATCH):
            images = [
                self.records[row].image(IMAGE_SIZE)
                for row in range(start, min(start + BATCH, count))
            ]
            image_BCHW = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
            coarse_BChw = tokenizer.decode(tokenizer.encode(coarse_image(image_BCHW, levels)))
            found.append(features(to_uint8(upsample(coarse_BChw))))
            yield Progress(stage="decoding real images", step=start + len(images), steps=count)
        drawn_ND = np.concatenate(found)
        answer = Nearness.of(drawn_ND, self.feature_ND[:count]).to_json()
        if self.readers:
            known = known_of(self.records, count)
            answer["attributes"] = balanced_accuracy(self.readers, drawn_ND, known)
        return answer

    def quality(
        self,
        name: str,
        pipeline: DPWaveletPipeline,
        settings: Sampling,
        upsampler: Upsampler,
        count: int,
    ) -> Generator[Progress, None, dict[str, Any]]:
        """Draw the captions of the first test records, as many balanced ones where attributes can
        be read, and a few captions again and again; picture i from seed i.
        """
        own = [captions_of(self.records, row)[0] for row in range(count)]
        asked = captions(count) if self.readers else []
        texts = (
            own + [text for text, _ in asked] + [text for text in own[:SAME] for _ in range(SAME)]
        )
        found = []
        for start in range(0, len(texts), BATCH):
            part = texts[start : start + BATCH]
            drawn = pipeline(part, seed=start, settings=settings, upsampler=upsampler)
            found.append(features(drawn.image))
            done = start + len(part)
            yield Progress(stage=f"pictures of {name}", step=done, steps=len(texts))
        own_ND, asked_ND, same_ND = np.split(np.concatenate(found), (count, count + len(asked)))
        answer = Nearness.of(own_ND, self.feature_ND[:count]).to_json()
        spreads = [spread(same_ND[row : row + SAME]) for row in range(0, SAME * SAME, SAME)]
        answer["spread_of_one_caption"] = float(np.mean(spreads))
        if asked:
            known = [classes for _, classes in asked]
            answer["attributes"] = balanced_accuracy(self.readers, asked_ND, known)
        return answer
