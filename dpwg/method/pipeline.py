"""Captions to images: text, tokens scale by scale, coarse image, full image."""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, SupportsInt

import numpy as np
import torch
from torch import Tensor

from dpwg.method.captions import EncodedText, TextEncoder
from dpwg.method.encoders import check_encoder, open_encoder
from dpwg.method.families import FAMILIES
from dpwg.method.sampling import Sampling
from dpwg.method.wavelet import haar_pyramid
from dpwg.privacy.card import PrivacyCard

if TYPE_CHECKING:
    from dpwg.release.folder import Release
    from dpwg.release.shared import ReleasedReranker
    from dpwg.upsampling.upsamplers import Upsampler

MAX_SEED = 2**31 - 1
COARSEST = 8
"""Pixels a side of the coarsest band that is shown of a picture that was drawn in one scale."""
DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step on the way from captions to pictures, and who took it.

    `images`, uint8 (B, h, w, 3), are what the private model has decided so far; None while a public
    upsampler that draws in steps is at work, of which `step` of `steps` are done.
    """

    images: np.ndarray | None
    step: int
    steps: int

    @property
    def private(self) -> bool:
        """Whether the privately trained model took it, or a public one."""
        return self.images is not None

    def __str__(self) -> str:
        return f"{'scale' if self.private else 'upsampling step'} {self.step} of {self.steps}"


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """What a viewer needs. Images are uint8 (B, H, W, 3).

    `partials` holds the image of each scale, coarse to fine, the last being `coarse`: what the
    privately trained model decided. `bands` is the Haar pyramid of `image` as
    `wavelet.haar_pyramid` orders it, down to the coarsest scale; the upsampler may have changed its
    first bands, those of `coarse`, a little. The coarsest scale is the best of `candidates`, as the
    `reranker` sees it; 1 and None where there was no choice.
    `seconds` has the times of `text`, `tokens`, `upsampling` and `total`.
    """

    coarse: np.ndarray
    image: np.ndarray
    bands: list[Tensor]
    partials: list[np.ndarray]
    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    candidates: int
    reranker: ReleasedReranker | None
    card: PrivacyCard
    seconds: dict[str, float]

    @property
    def seed(self) -> int:
        """The seed of the first image."""
        return self.seeds[0]

    def to_json(self) -> dict[str, Any]:
        """What a result file says of the images."""
        return {
            "caption": self.captions[0],
            "captions": list(self.captions),
            "seed": self.seed,
            "seeds": list(self.seeds),
            "candidates": self.candidates,
            "reranker": None if self.reranker is None else self.reranker.to_json(),
            "epsilon": self.card.epsilon,
            "delta": self.card.delta,
            "coarse_size": self.coarse.shape[1],
            "image_size": self.image.shape[1],
            "seconds": self.seconds,
        }


class DPWaveletPipeline:
    """A release and its text encoder, ready to generate.

    A `reranker` chooses among candidates of the coarsest scale; without one there is one candidate.
    """

    def __init__(
        self, release: Release, encoder: TextEncoder, reranker: ReleasedReranker | None = None
    ) -> None:
        check_encoder(encoder, release.text_encoder)
        self.release, self.encoder, self.reranker = release, encoder, reranker
        self._model = copy.deepcopy(release.model).double()
        self._judge = None if reranker is None else copy.deepcopy(reranker.model).double()

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, revision: str | None = None) -> Self:
        """Load a checkpoint: by name, as "faces/eps-10", from a release folder, or from the hub.

        What is not here is looked for on the hub, as "user/name"; `revision` is a branch, tag or
        commit there. A release that does not bear out its card is refused. The text encoder is the
        one that the release names, see `method.encoders.open_encoder`; the reranker that of the
        checkpoints in use, if it knows the release's tokenizer and encoder.
        """
        from dpwg.release.hub import open_release
        from dpwg.release.shared import reranker_for

        release = open_release(name_or_path, revision=revision)
        reranker = reranker_for(release.tokenizer, release.text_encoder)
        return cls(release, open_encoder(release.text_encoder), reranker)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a self-contained release folder: weights, tokenizer, configuration, card."""
        from dpwg.release.folder import save_release

        save_release(Path(folder), self.release)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Upload the release and its model card as "user/name"; see `release.hub.push`."""
        from dpwg.release.hub import push

        return push(self.release, name, **options)

    def to(self, device: str | torch.device) -> Self:
        """Draw codes on another device, still in float64; the CPU decodes images and chooses among
        candidates.
        """
        self._model.to(device)
        return self

    def candidates(self, settings: Sampling = DEFAULT_SAMPLING) -> int:
        """How many candidates of the coarsest scale a caption gets: 1 where nothing can choose."""
        return 1 if self.reranker is None else settings.candidates_drawn

    def choice(self, settings: Sampling = DEFAULT_SAMPLING) -> dict[str, Any]:
        """What a result file says of it: how many `candidates`, and which `reranker`, if any."""
        candidates = self.candidates(settings)
        chosen_by = self.reranker.to_json() if self.reranker and candidates > 1 else None
        return {"candidates": candidates, "reranker": chosen_by}

    def __call__(self, captions: str | Sequence[str], **options: Any) -> GenerationResult:
        """One image a caption; the options are those of `stages`."""
        *_, result = self.stages(captions, **options)
        assert isinstance(result, GenerationResult)
        return result

    def stages(
        self,
        captions: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        guidance: float | None = None,
        settings: Sampling = DEFAULT_SAMPLING,
        upsampler: str | Upsampler | None = None,
    ) -> Iterator[Stage | GenerationResult]:
        """Draw one image a caption: a stage a scale, those of an upsampler in steps, the result.

        Image i of an integer seed has seed + i; or give a seed for each. `guidance` replaces that
        of `settings`, which has the temperature and the cuts too. The `upsampler` is by default the
        one that suits the release. Who closes the iterator ends the work.
        """
        from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, PromptedUpsampler, get_upsampler

        captions = (captions,) if isinstance(captions, str) else tuple(captions)
        seeds = _seeds(seed, len(captions))
        if guidance is not None:
            settings = dataclasses.replace(settings, guidance=guidance)
        upsampler = upsampler or self.release.upsampler or DEFAULT_UPSAMPLER
        upsample = get_upsampler(upsampler) if isinstance(upsampler, str) else upsampler
        candidates = self.candidates(settings) if any(map(str.strip, captions)) else 1
        clock = [time.perf_counter()]
        text, empty = self.encoder.encode(captions), self.encoder.encode([""])
        clock.append(time.perf_counter())
        choose = functools.partial(self._choose, captions, text) if candidates > 1 else None
        partials: list[np.ndarray] = []
        family = FAMILIES[self.release.family]
        steps = family.stages(self.release.model.config)
        for codes in family.draw(self._model, text, empty, seeds, settings, choose=choose):
            partials.append(to_uint8(self.release.tokenizer.decode([c.cpu() for c in codes])))
            yield Stage(images=partials[-1], step=len(partials), steps=steps)
        clock.append(time.perf_counter())
        coarse_BCHW = torch.from_numpy(partials[-1]).permute(0, 3, 1, 2).float() / 255
        if isinstance(upsample, PromptedUpsampler):
            for drawn in upsample.draw(coarse_BCHW, captions=captions, seeds=seeds):
                if isinstance(drawn, Tensor):
                    image_BCHW = drawn
                else:
                    yield Stage(images=None, step=drawn[0], steps=drawn[1])
        else:
            image_BCHW = upsample(coarse_BCHW)
        clock.append(time.perf_counter())
        coarsest = min(partials[0].shape[1], COARSEST)
        levels = (image_BCHW.shape[-1] // coarsest).bit_length() - 1
        names = ("text", "tokens", "upsampling")
        seconds = {n: b - a for n, a, b in zip(names, clock[:-1], clock[1:], strict=True)}
        yield GenerationResult(
            coarse=partials[-1],
            image=to_uint8(image_BCHW),
            bands=haar_pyramid(image_BCHW, levels),
            partials=partials,
            captions=captions,
            seeds=seeds,
            candidates=candidates,
            reranker=self.reranker if candidates > 1 else None,
            card=self.release.card,
            seconds={**seconds, "total": clock[-1] - clock[0]},
        )

    def _choose(
        self, captions: Sequence[str], text: EncodedText, codes_BNPK: Tensor, image_B: Tensor
    ) -> Tensor:
        """The candidate that fits best; of no caption, whatever was drawn first."""
        assert self._judge is not None
        images = self.release.tokenizer.decode([codes_BNPK.flatten(0, 1).cpu()])
        candidates_BNChw = images.unflatten(0, codes_BNPK.shape[:2])
        best_B = self._judge.choose(
            candidates_BNChw, text.states_BLD[image_B], text.mask_BL[image_B]
        )
        return best_B * torch.tensor([bool(captions[i].strip()) for i in image_B.tolist()])


def to_uint8(image_BCHW: Tensor) -> np.ndarray:
    """Images in [0, 1] as uint8 (B, H, W, 3)."""
    scaled = (image_BCHW.clamp(0, 1) * 255).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()


def _seeds(seed: int | Sequence[int], count: int) -> tuple[int, ...]:
    first = range(int(seed), int(seed) + count) if isinstance(seed, SupportsInt) else seed
    seeds = tuple(map(int, first))
    if len(seeds) != count or not all(0 <= s <= MAX_SEED for s in seeds):
        raise ValueError(f"Expected seed={seed} to give {count} seeds in [0, {MAX_SEED}].")
    return seeds
