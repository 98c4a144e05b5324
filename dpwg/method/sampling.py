"""Drawing images from WaveletGPT, code by code, scale by scale.

Each image has its own generator, so a seed gives the same image alone and in any batch. On a CPU
the model runs in float64 here: its sums then differ between batch sizes by so little that no draw
can fall to the other side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dpwg.config import Config, Natural
from dpwg.method.captions import EncodedText
from dpwg.method.transformer import WaveletGPT

MAX_CANDIDATES = 16
ROWS = 64
"""How many candidates are drawn at once, so that they fit into memory."""
Choose = Callable[[Tensor, Tensor], Tensor]
"""Given the coarsest codes of some images' candidates, (B, candidates, positions, codes), and which
of the images these are, (B,): which candidate of each goes on, int64 (B,), or the first that equals
it."""


@dataclass(frozen=True, kw_only=True)
class Sampling(Config):
    """How codes are drawn.

    `guidance` g takes logits to unconditional + g (conditional - unconditional): 1 is none.
    `temperature` 0 takes the likeliest code. `top_k` 0 and `top_p` 1 cut nothing. The coarsest
    scale is drawn `candidates` times where something chooses among them.
    """

    guidance: Annotated[float, Field(ge=0, le=20)] = 1.5
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.5
    top_k: Natural = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    candidates: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = 8

    @property
    def candidates_drawn(self) -> int:
        """How many candidates there are to choose among: at temperature 0 all would be the same."""
        return self.candidates if self.temperature else 1


@torch.no_grad()
def sample(
    model: WaveletGPT,
    text: EncodedText,
    unconditional: EncodedText,
    seeds: Sequence[int],
    settings: Sampling,
    *,
    choose: Choose | None = None,
) -> Iterator[list[Tensor]]:
    """Codes of one image a caption and seed, as each scale is finished: those of all scales so far,
    one int64 tensor (B, positions, codes) a scale.

    `unconditional` is the empty caption, one row. `choose` chooses among the candidates of
    the coarsest scale; without it there is one. `model` computes in its own dtype.
    """
    if len(text.mask_BL) != len(seeds):
        raise ValueError(
            f"Expected one seed a caption, found {len(seeds)} and {len(text.mask_BL)}."
        )
    used_L = (text.mask_BL | unconditional.mask_BL).any(0)  # the rest is padding of every caption
    text, unconditional = _cut(text, used_L), _cut(unconditional, used_L)
    candidates = 1 if choose is None else settings.candidates_drawn
    parts = torch.arange(len(seeds)).split(
        max(1, ROWS // candidates) if candidates > 1 else len(seeds)
    )

    def coarsest(image_B: Tensor) -> Drawing:
        own = EncodedText(states_BLD=text.states_BLD[image_B], mask_BL=text.mask_BL[image_B])
        own_seeds = [seeds[image] for image in image_B.tolist()]
        drawing = Drawing(model, own, unconditional, own_seeds, settings, candidates)
        drawing.draw(0)
        if choose is not None and candidates > 1:
            codes_BNPK = drawing.codes[0].unflatten(0, (-1, candidates))
            chosen_B = choose(codes_BNPK, image_B).to(codes_BNPK.device)
            chosen_B1PK = codes_BNPK[torch.arange(len(image_B)), chosen_B].unsqueeze(1)
            drawing.keep((codes_BNPK == chosen_B1PK).flatten(2).all(2).int().argmax(1))
        return drawing

    drawing, *others = map(coarsest, parts)
    if others:
        drawing.join(others)
    for scale in range(model.config.scales):
        if scale:
            drawing.draw(scale)
        yield drawing.codes[: scale + 1]


def _cut(text: EncodedText, used_L: Tensor) -> EncodedText:
    return EncodedText(states_BLD=text.states_BLD[:, used_L], mask_BL=text.mask_BL[:, used_L])


class Drawing:
    """The codes of a batch on their way, a row a candidate, with what the next ones are drawn from.

    In the model each row is `passes` rows: with the caption, and without it where it guides.
    """

    def __init__(
        self,
        model: WaveletGPT,
        text: EncodedText,
        unconditional: EncodedText,
        seeds: Sequence[int],
        settings: Sampling,
        candidates: int,
    ) -> None:
        self._model, self._settings, self._candidates = model, settings, candidates
        rows, config, device = len(seeds) * candidates, model.config, model.norm.weight.device
        self._generators = [
            torch.Generator().manual_seed(_candidate_seed(seed, candidate))
            for seed in seeds
            for candidate in range(candidates)
        ]
        self._passes = 1 if settings.guidance == 1 else 2
        states_BLD = text.states_BLD.repeat_interleave(candidates, dim=0)
        mask_BL = text.mask_BL.repeat_interleave(candidates, dim=0)
        if self._passes == 2:
            empty_BLD = unconditional.states_BLD.expand_as(states_BLD)
            states_BLD = torch.stack((states_BLD, empty_BLD), dim=1).flatten(0, 1)
            empty_BL = unconditional.mask_BL.expand_as(mask_BL)
            mask_BL = torch.stack((mask_BL, empty_BL), dim=1).flatten(0, 1)
        self._generation = model.begin(states_BLD.to(device), mask_BL.to(device))
        self.codes = [
            torch.zeros(rows, config.positions, config.codes, dtype=torch.int64, device=device)
            for _ in range(config.scales)
        ]
        self._latents = [
            z.repeat_interleave(self._passes, dim=0) for z in model.latents(self.codes)
        ]

    def draw(self, scale: int, places: Iterable[int] | None = None) -> None:
        """Draw the codes of a scale's next positions, all by default."""
        model, config = self._model, self._model.config
        table_KD = model.get_buffer(f"codebook_{scale}")
        vectors_BPKD = self._latents[scale].unflatten(2, (config.codes, -1))
        for place in places or range(config.positions):
            self._generation.advance(self._latents)
            for code in range(config.codes):
                logits_BV = self._generation.logits(self._latents, code)
                if self._passes == 2:
                    conditional_BV, free_BV = logits_BV.unflatten(0, (-1, 2)).unbind(1)
                    logits_BV = free_BV + self._settings.guidance * (conditional_BV - free_BV)
                drawn_B = _draw(logits_BV, self._settings, self._generators)
                self.codes[scale][:, place, code] = drawn_B
                vectors_BPKD[:, place, code] = table_KD[drawn_B].repeat_interleave(self._passes, 0)

    def keep(self, candidate_B: Tensor) -> None:
        """Go on with one candidate of each image."""
        kept_B = torch.arange(0, len(self._generators), self._candidates) + candidate_B.cpu()
        self._generators = [self._generators[row] for row in kept_B.tolist()]
        self._candidates = 1
        kept_B = kept_B.to(self.codes[0].device)
        passes = torch.arange(self._passes, device=kept_B.device)
        every_B = (kept_B[:, None] * self._passes + passes).flatten()
        self.codes = [codes[kept_B] for codes in self.codes]
        self._latents = [latents[every_B] for latents in self._latents]
        self._generation.keep(every_B)

    def join(self, others: Sequence[Drawing]) -> None:
        """Go on with the images of others behind these, at the same place."""
        every = (self, *others)
        self._generators = [generator for one in every for generator in one._generators]
        self.codes = [torch.cat(codes) for codes in zip(*(one.codes for one in every), strict=True)]
        self._latents = [
            torch.cat(latents) for latents in zip(*(one._latents for one in every), strict=True)
        ]
        self._generation.join([one._generation for one in others])


def _candidate_seed(seed: int, candidate: int) -> int:
    """A seed of 32 bits, which PyTorch's generator takes; the first one's is the image's own."""
    if candidate == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{candidate}".encode()).digest()[:4])


def _draw(logits_BV: Tensor, settings: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """One code a row: by inverse transform of one uniform number from the row's own generator."""
    uniform_B = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    if settings.temperature == 0:
        return logits_BV.argmax(1)
    chances_BV = (logits_BV.double() / settings.temperature).softmax(1)
    sorted_BV, order_BV = _sorted(chances_BV, settings.top_p)
    above_BV = sorted_BV.cumsum(1) - sorted_BV
    kept_BV = above_BV < settings.top_p
    if settings.top_k:
        kept_BV[:, settings.top_k :] = False
    sums_BV = (sorted_BV * kept_BV).cumsum(1)
    target_B1 = uniform_B.to(sums_BV.device)[:, None] * sums_BV[:, -1:]
    rank_B = (sums_BV <= target_B1).sum(1).clamp(max=kept_BV.sum(1) - 1)
    return order_BV.gather(1, rank_B[:, None]).squeeze(1)


def _sorted(chances_BV: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The chances that `top_p` may keep, largest first, equal ones in order, and their codes.

    A code below the mean of what is cut is not kept: it and the smaller ones have less than
    1 - top_p together. Half that mean leaves room for rounding. Sorting all takes ten times longer.
    """
    V = chances_BV.shape[1]
    most = int((chances_BV >= (1 - top_p) / V / 2).sum(1).max())
    if most > V // 4:
        return chances_BV.sort(dim=1, descending=True, stable=True)
    codes_BK = chances_BV.topk(most, dim=1, sorted=False).indices.sort(dim=1).values
    sorted_BK, places_BK = chances_BV.gather(1, codes_BK).sort(dim=1, descending=True, stable=True)
    return sorted_BK, codes_BK.gather(1, places_BK)
