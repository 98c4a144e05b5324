"""DP-LlamaGen: the whole image in one scale, a code a patch, row by row.

Neither code nor paper of DP-LlamaGen is public. This stands for what its name says: LlamaGen (Sun
et al. 2024, arXiv 2406.06525), whose transformer predicts the codes of the full image in raster
order, trained by DP-SGD. With one scale WaveletGPT is that transformer: nothing is coarser than a
position, and all of the image is private. As in ViT-VQGAN (Yu et al. 2021, arXiv 2110.04627) the
patches go through transformers, here in both directions, not through convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dpwg.method.captions import EncodedText
from dpwg.method.sampling import Drawing, Sampling
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.method.transformer import WaveletGPT

UNDRAWN = -1
"""The code of a patch that is not drawn yet; it decodes to grey."""


class RasterTokenizer(SpectralTokenizer):
    """Full images <-> one scale of codes; a `SpectralTokenizer` without any level of details."""

    def decode(self, codes: Sequence[Tensor]) -> Tensor:
        """Code indices -> the image in [0, 1], grey where they are UNDRAWN."""
        (index_BPK,) = codes
        image_BCHW = super().decode([index_BPK.clamp(min=0)])
        drawn_BPK1 = (index_BPK != UNDRAWN).unsqueeze(-1)
        drawn_BCHW = self.paste(drawn_BPK1.expand(-1, -1, -1, self.config.code_widths[0]), 0)
        return image_BCHW.where(drawn_BCHW, 0.5)


def rows_of(positions: int) -> list[range]:
    """The positions of each row of a square image of so many."""
    side = math.isqrt(positions)
    return [range(start, start + side) for start in range(0, positions, side)]


@torch.no_grad()
def sample_rows(
    model: WaveletGPT,
    text: EncodedText,
    unconditional: EncodedText,
    seeds: Sequence[int],
    settings: Sampling,
    **_: Any,
) -> Iterator[list[Tensor]]:
    """Codes as `sampling.sample` draws them, as each row is finished; the rest is UNDRAWN."""
    drawing = Drawing(model, text, unconditional, seeds, settings, candidates=1)
    for row in rows_of(model.config.positions):
        drawing.draw(0, row)
        codes_BPK = drawing.codes[0].clone()
        codes_BPK[:, row.stop :] = UNDRAWN
        yield [codes_BPK]
