"""Captions to images: text, tokens scale by scale, coarse image, full image."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dpwg.checkpoint import Release, ReleasedMatcher, matcher_for, save_release
from dpwg.encoders import check_encoder, open_encoder
from dpwg.hub import open_release, push
from dpwg.privacy.card import PrivacyCard
from dpwg.sampling import Sampling, sample
from dpwg.text import TextEncoder
from dpwg.upsample import DEFAULT_UPSAMPLER, PromptedUpsampler, Upsampler, get_upsampler
from dpwg.wavelet import haar_pyramid

MAX_SEED = 2**31 - 1
DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """What a viewer needs. Images are uint8 (B, H, W, 3).

    `partials` holds the image of each scale, coarse to fine, the last being `coarse`: what the
    privately trained model decided. `bands` is the Haar pyramid of `image` as
    `wavelet.haar_pyramid` orders it, down to the coarsest scale; the upsampler may have changed its
    first bands, those of `coarse`, a little. The coarsest scale is the best of `drafts`, as the
    `matcher` sees it; 1 and None where there was no choice.
    `seconds` has the times of `text`, `tokens`, `upsampling` and `total`.
    """

    coarse: np.ndarray
    image: np.ndarray
    bands: list[Tensor]
    partials: list[np.ndarray]
    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    drafts: int
    matcher: ReleasedMatcher | None
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
            "drafts": self.drafts,
            "matcher": None if self.matcher is None else self.matcher.to_json(),
            "epsilon": self.card.epsilon,
            "delta": self.card.delta,
            "coarse_size": self.coarse.shape[1],
            "image_size": self.image.shape[1],
            "seconds": self.seconds,
        }


class DPWaveletPipeline:
    """A release and its text encoder, ready to generate.

    `matcher` is that of the checkpoints in use, if it knows the release's tokenizer and encoder.
    """

    def __init__(self, release: Release, encoder: TextEncoder) -> None:
        check_encoder(encoder, release.text_encoder)
        self.release, self.encoder = release, encoder
        self._model = copy.deepcopy(release.model).double()
        self.matcher = matcher_for(release)
        self._judge = None if self.matcher is None else copy.deepcopy(self.matcher.model).double()

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, revision: str | None = None) -> Self:
        """Load a checkpoint: by name, as "faces/eps-10", from a release folder, or from the hub.

        What is not here is looked for on the hub, as "user/name"; `revision` is a branch, tag or
        commit there. A release that does not bear out its card is refused. The text encoder is the
        one that the release names, see `dpwg.encoders.open_encoder`.
        """
        release = open_release(name_or_path, revision=revision)
        return cls(release, open_encoder(release.text_encoder))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a self-contained release folder: weights, tokenizer, configuration, card."""
        save_release(Path(folder), self.release)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Upload the release and its model card as "user/name"; see `dpwg.hub.push`."""
        return push(self.release, name, **options)

    def to(self, device: str | torch.device) -> Self:
        """Draw codes on another device, still in float64; images are decoded and drafts chosen on
        the CPU.
        """
        self._model.to(device)
        return self

    def drafts(self, settings: Sampling = DEFAULT_SAMPLING) -> int:
        """How many drafts of the coarsest scale a caption gets: 1 where nothing can choose."""
        return 1 if self.matcher is None else settings.drafts_drawn

    def choice(self, settings: Sampling = DEFAULT_SAMPLING) -> dict[str, Any]:
        """What a result file says of it: how many `drafts`, and which `matcher`, if any."""
        drafts = self.drafts(settings)
        chosen_by = self.matcher.to_json() if self.matcher and drafts > 1 else None
        return {"drafts": drafts, "matcher": chosen_by}

    def __call__(
        self,
        captions: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        guidance: float | None = None,
        settings: Sampling = DEFAULT_SAMPLING,
        upsampler: str | Upsampler | None = None,
        on_scale: Callable[[np.ndarray], None] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> GenerationResult:
        """One image a caption. Image i of an integer seed has seed + i; or give a seed for each.

        `guidance` replaces that of `settings`, which has the temperature and the cuts too. The
        `upsampler` is by default the one that suits the release.

        `on_scale` is called with the partial images, uint8 (B, h, w, 3), as each scale is finished.
        An upsampler that draws is given captions and seeds, and calls `on_step` with how many of
        its steps are done, of how many. What either raises ends the work.
        """
        captions = (captions,) if isinstance(captions, str) else tuple(captions)
        seeds = _seeds(seed, len(captions))
        if guidance is not None:
            settings = dataclasses.replace(settings, guidance=guidance)
        upsampler = upsampler or self.release.upsampler or DEFAULT_UPSAMPLER
        upsample = get_upsampler(upsampler) if isinstance(upsampler, str) else upsampler
        drafts = self.drafts(settings) if any(map(str.strip, captions)) else 1
        clock = [time.perf_counter()]
        text, empty = self.encoder.encode(captions), self.encoder.encode([""])
        clock.append(time.perf_counter())
        partials: list[np.ndarray] = []

        def decode(codes: list[Tensor]) -> None:
            partials.append(to_uint8(self.release.tokenizer.decode([c.cpu() for c in codes])))
            if on_scale is not None:
                on_scale(partials[-1])

        def choose(codes_BNPK: Tensor, image_B: Tensor) -> Tensor:
            """The draft that fits best; of no caption, whatever was drawn first."""
            assert self._judge is not None
            images = self.release.tokenizer.decode([codes_BNPK.flatten(0, 1).cpu()])
            drafts_BNChw = images.unflatten(0, codes_BNPK.shape[:2])
            best_B = self._judge.choose(
                drafts_BNChw, text.states_BLD[image_B], text.mask_BL[image_B]
            )
            return best_B * torch.tensor([bool(captions[i].strip()) for i in image_B.tolist()])

        sample(
            self._model,
            text,
            empty,
            seeds,
            settings,
            on_scale=decode,
            choose=choose if drafts > 1 else None,
        )
        clock.append(time.perf_counter())
        coarse_BCHW = torch.from_numpy(partials[-1]).permute(0, 3, 1, 2).float() / 255
        if isinstance(upsample, PromptedUpsampler):
            image_BCHW = upsample.draw(coarse_BCHW, captions=captions, seeds=seeds, on_step=on_step)
        else:
            image_BCHW = upsample(coarse_BCHW)
        clock.append(time.perf_counter())
        levels = (image_BCHW.shape[-1] // partials[0].shape[1]).bit_length() - 1
        names = ("text", "tokens", "upsampling")
        seconds = {n: b - a for n, a, b in zip(names, clock[:-1], clock[1:], strict=True)}
        return GenerationResult(
            coarse=partials[-1],
            image=to_uint8(image_BCHW),
            bands=haar_pyramid(image_BCHW, levels),
            partials=partials,
            captions=captions,
            seeds=seeds,
            drafts=drafts,
            matcher=self.matcher if drafts > 1 else None,
            card=self.release.card,
            seconds={**seconds, "total": clock[-1] - clock[0]},
        )


def to_uint8(image_BCHW: Tensor) -> np.ndarray:
    """Images in [0, 1] as uint8 (B, H, W, 3)."""
    scaled = (image_BCHW.clamp(0, 1) * 255).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()


def _seeds(seed: int | Sequence[int], count: int) -> tuple[int, ...]:
    seeds = tuple(range(seed, seed + count)) if isinstance(seed, int) else tuple(seed)
    if len(seeds) != count or not all(0 <= s <= MAX_SEED for s in seeds):
        raise ValueError(f"Expected seed={seed} to give {count} seeds in [0, {MAX_SEED}].")
    return seeds
