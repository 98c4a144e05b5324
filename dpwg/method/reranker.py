"""How well does a coarsest band fit a caption? A contrastive model, trained on public data alone.

Captions and images become unit vectors, and a pair's score their product, as in CLIP (arXiv
2103.00020). Of several candidates of the coarsest band the best one goes on to the finer scales, as
whole images are reranked in arXiv 2102.12092. The reranker never saw a sensitive record, so by
post-processing the choice costs no privacy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpwg.config import RerankerConfig
from dpwg.method.layers import Block

LARGEST = math.log(100.0)
"""The logarithm of what scores are multiplied by at most, as in CLIP."""


class Slots(nn.Module):
    """A sequence as one unit vector: `slots` parts, each read by a learnt query of its own."""

    def __init__(self, width: int, slots: int, slot_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, slots)
        self.values = nn.Linear(width, slots * slot_width)

    def forward(self, x_BTC: Tensor, bias_BT1: Tensor) -> Tensor:
        """(B, T, width) -> (B, slots * slot_width); a bias of -inf leaves a position out."""
        x_BTC = self.norm(x_BTC)
        weights_BTS = (self.scores(x_BTC) + bias_BT1).softmax(1)
        values_BTSD = self.values(x_BTC).unflatten(2, (weights_BTS.shape[2], -1))
        parts_BSD = (weights_BTS.unsqueeze(-1) * values_BTSD).sum(1)
        return F.normalize(parts_BSD, dim=-1).flatten(1) * parts_BSD.shape[1] ** -0.5


class Reranker(nn.Module):
    """Captions and images of the coarsest band -> unit vectors of the same space.

    A caption is (B, L, text_width) states of the text encoder and a (B, L) mask, an image RGB in
    [0, 1], (B, 3, image_size, image_size).
    """

    def __init__(self, config: RerankerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patches = nn.Linear(3 * config.patch**2, width)
        self.places = nn.Embedding(config.positions, width)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.blocks))
        self.image_slots = Slots(width, config.slots, config.slot_width)
        self.words = nn.Linear(config.text_width, width)
        self.text_slots = Slots(width, config.slots, config.slot_width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        nn.init.normal_(self.places.weight, std=0.02)

    def images(self, image_BChw: Tensor) -> Tensor:
        """Unit vectors of images, (B, slots * slot_width)."""
        centred_BChw = 4 * (image_BChw.to(self.words.weight.dtype) - 0.5)
        patches_BTD = F.pixel_unshuffle(centred_BChw, self.config.patch).flatten(2).transpose(1, 2)
        x_BTC = self.patches(patches_BTD) + self.places.weight
        for block in self.blocks:
            x_BTC = block(x_BTC, x_BTC.new_zeros(()))
        vectors_BV: Tensor = self.image_slots(x_BTC, x_BTC.new_zeros(()))
        return vectors_BV

    def captions(self, states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Unit vectors of captions, (B, slots * slot_width)."""
        states_BLD = states_BLD.to(self.words.weight.dtype)
        x_BLC = self.words(F.layer_norm(states_BLD, states_BLD.shape[-1:]))
        bias_BL = x_BLC.new_zeros(mask_BL.shape).masked_fill(~mask_BL, -torch.inf)
        vectors_BV: Tensor = self.text_slots(x_BLC, bias_BL.unsqueeze(-1))
        return vectors_BV

    def scores(self, image_BChw: Tensor, states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Scores of every image with every caption, (images, captions): logits of which belong
        together.
        """
        vectors_BV = self.images(image_BChw)
        scale = self.log_scale.clamp(max=LARGEST).exp()
        return scale * vectors_BV @ self.captions(states_BLD, mask_BL).T

    @torch.no_grad()
    def choose(self, image_BNChw: Tensor, states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Which of the N candidates of each image fits its caption best, int64 (B,)."""
        image_BNV = self.images(image_BNChw.flatten(0, 1)).unflatten(0, image_BNChw.shape[:2])
        return (image_BNV * self.captions(states_BLD, mask_BL).unsqueeze(1)).sum(-1).argmax(1)
