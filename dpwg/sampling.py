"""Drawing images from WaveletGPT, code by code, with a callback after every scale.

Each image has its own generator, so a seed gives the same image alone and in any batch. On a CPU
the model runs in float64 here: its sums then differ between batch sizes by so little that no draw
can fall to the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpwg.config import Config
from dpwg.model import WaveletGPT
from dpwg.text import EncodedText


@dataclass(frozen=True, kw_only=True)
class Sampling(Config):
    """How codes are drawn.

    `guidance` g takes logits to unconditional + g (conditional - unconditional): 1 is none.
    `temperature` 0 takes the likeliest code. `top_k` 0 and `top_p` 1 cut nothing.
    """

    guidance: float = 1.5
    temperature: float = 0.5
    top_k: int = 0
    top_p: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.guidance <= 20:
            raise ValueError(f"Expected guidance={self.guidance} in [0, 20]; 1 is no guidance.")
        if not 0 <= self.temperature <= 5:
            raise ValueError(
                f"Expected temperature={self.temperature} in [0, 5]; 1 is the model's."
            )
        if self.top_k < 0:
            raise ValueError(f"Expected top_k={self.top_k} >= 0; 0 cuts nothing.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Expected top_p={self.top_p} in (0, 1]; 1 cuts nothing.")


@torch.no_grad()
def sample(
    model: WaveletGPT,
    text: EncodedText,
    unconditional: EncodedText,
    seeds: Sequence[int],
    settings: Sampling,
    *,
    on_scale: Callable[[list[Tensor]], None] | None = None,
) -> list[Tensor]:
    """Codes of one image a caption and seed: one int64 tensor (B, positions, codes) a scale.

    `unconditional` is the empty caption, one row. `on_scale` is called after each scale with the
    codes of all scales so far. `model` computes in its own dtype.
    """
    B, config = len(seeds), model.config
    if len(text.mask_BL) != B:
        raise ValueError(f"Expected one seed a caption, found {B} and {len(text.mask_BL)}.")
    device = model.norm.weight.device
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    guided = settings.guidance != 1
    states_BLD, mask_BL = text.states_BLD, text.mask_BL
    if guided:
        states_BLD = torch.cat((states_BLD, unconditional.states_BLD.expand(B, -1, -1)))
        mask_BL = torch.cat((mask_BL, unconditional.mask_BL.expand(B, -1)))
    used_L = mask_BL.any(0)  # the rest is padding of every caption
    states_BLD, mask_BL = states_BLD[:, used_L], mask_BL[:, used_L]
    generation = model.begin(states_BLD.to(device), mask_BL.to(device))
    codes = [
        torch.zeros(B, config.positions, config.codes, dtype=torch.int64, device=device)
        for _ in range(config.scales)
    ]
    latents = [z.repeat(2 if guided else 1, 1, 1) for z in model.latents(codes)]
    for scale in range(config.scales):
        table_KD = model.get_buffer(f"codebook_{scale}")
        vectors_BPKD = latents[scale].unflatten(2, (config.codes, -1))
        for place in range(config.positions):
            generation.advance(latents)
            for code in range(config.codes):
                logits_BV = generation.logits(latents, code)
                if guided:
                    conditional, free = logits_BV.chunk(2)
                    logits_BV = free + settings.guidance * (conditional - free)
                drawn_B = _draw(logits_BV, settings, generators)
                codes[scale][:, place, code] = drawn_B
                vectors_BPKD[:, place, code] = table_KD[drawn_B].repeat(2 if guided else 1, 1)
        if on_scale is not None:
            on_scale(codes[: scale + 1])
    return codes


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
