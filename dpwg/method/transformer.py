"""WaveletGPT: an autoregressive transformer over the coarse codes of an image, given its caption.

Positions run from the coarsest scale to the finest, row by row within a scale. Every block attends
to the caption, as a prefix of keys and values projected from the frozen text encoder's states, and
to the positions before. What enters at a position is the previous position and, from the coarser
scales, the codes of the same place. A small head then gives the position's codes one after the
other. Each logit belongs to one scale's codebook, so no position can leave its scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dpwg.config import ModelConfig
from dpwg.method.generator import Batch, Generator
from dpwg.method.layers import Block, KeyValueCache, cross_entropy
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.privacy.lora import add_lora

LORA_LAYERS = ("qkv", "prefix_kv", "attention_out", "mlp_in", "mlp_out", "enter", "logits")
"""The layers that adapters go to."""


class CodeHead(nn.Module):
    """The codes of the positions of one scale, each given the position and its earlier codes."""

    earlier_KP: Tensor

    def __init__(self, width: int, code_width: int, codes: int, size: int, hidden: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, codes * hidden)
        self.earlier = nn.Linear(codes * code_width, hidden)
        self.norm_mlp = nn.LayerNorm(hidden)
        self.mlp_in = nn.Linear(hidden, 2 * hidden)
        self.mlp_out = nn.Linear(2 * hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.logits = nn.Linear(hidden, size)
        seen = torch.arange(codes)[None, :] < torch.arange(codes)[:, None]
        self.register_buffer(
            "earlier_KP", seen.repeat_interleave(code_width, dim=1).float(), persistent=False
        )

    def forward(self, hidden_BPC: Tensor, latents_BPD: Tensor) -> Tensor:
        """Logits (B, P, codes, codebook size) of every code of the positions."""
        return self.answer(self.enter(hidden_BPC), latents_BPD, slice(None))

    def answer(self, entered_BPE: Tensor, latents_BPD: Tensor, codes: slice) -> Tensor:
        """Logits (B, P, asked codes, codebook size) of positions that went through `enter`.

        The latents of later codes have no effect.
        """
        entered_BPKH = entered_BPE.unflatten(2, (len(self.earlier_KP), -1))
        earlier_BPKD = latents_BPD.unsqueeze(2) * self.earlier_KP[codes]
        x_BPKH = entered_BPKH[:, :, codes] + self.earlier(earlier_BPKD)
        hidden_BPKH = F.gelu(self.mlp_in(self.norm_mlp(x_BPKH)), approximate="tanh")
        logits_BPKV: Tensor = self.logits(self.norm(x_BPKH + self.mlp_out(hidden_BPKH)))
        return logits_BPKV


class WaveletGPT(Generator):
    """Caption states and coarse codes -> logits of every code.

    Text is (B, L, text_width) states and a (B, L) mask, True at tokens. Codes are one int64 tensor
    (B, positions, codes) a scale, coarse to fine, as `SpectralTokenizer.encode` gives them. The
    tokenizer's codebooks are buffers here: what enters are the vectors that the codes stand for.
    """

    causal_TT: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, length, codes = config.width, config.length, config.codes
        patches = [codes * code_width for code_width in config.code_widths]
        for scale, shape in enumerate(zip(config.codebook_sizes, config.code_widths, strict=True)):
            self.register_buffer(f"codebook_{scale}", torch.randn(shape))
        # 1. what enters: the position before, the same place in coarser scales, where it is
        self.previous = nn.ModuleList(nn.Linear(patch, width) for patch in patches)
        self.coarser = nn.ModuleList(
            nn.Linear(sum(patches[:scale]), width) for scale in range(1, config.scales)
        )
        self.places = nn.Embedding(length, width)
        # 2. the blocks
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.text_width) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(width)
        # 3. what leaves
        self.heads = nn.ModuleList(
            CodeHead(width, code_width, codes, size, config.code_hidden)
            for size, code_width in zip(config.codebook_sizes, config.code_widths, strict=True)
        )
        causal_TT = torch.full((length, length), -torch.inf).triu(1)
        self.register_buffer("causal_TT", causal_TT, persistent=False)
        self._initialise()

    @classmethod
    def for_tokenizer(cls, tokenizer: SpectralTokenizer, **sizes: int) -> Self:
        """A new model for a tokenizer's codes, with its codebooks; `sizes` go to ModelConfig."""
        model = cls(ModelConfig.for_tokenizer(tokenizer.config, **sizes))
        for scale, codebook in enumerate(tokenizer.books()):
            model.get_buffer(f"codebook_{scale}").copy_(codebook.vectors_KD.detach())
        return model

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                deep = name.endswith(("attention_out.weight", "mlp_out.weight"))
                scale = (2 * self.config.blocks) ** -0.5 if deep else 1.0
                nn.init.normal_(parameter, std=scale * min(0.05, parameter.shape[1] ** -0.5))

    def latents(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Codes -> the codebook vectors of every position, (B, positions, codes * code width)."""
        return [
            F.embedding(index, self.get_buffer(f"codebook_{scale}")).flatten(2)
            for scale, index in enumerate(codes)
        ]

    def forward(self, states_BLD: Tensor, mask_BL: Tensor, codes: Sequence[Tensor]) -> list[Tensor]:
        """Teacher forcing: logits (B, positions, codes, codebook size) of every scale."""
        latents = self.latents(codes)
        P = self.config.positions
        entering = torch.cat([e(z) for e, z in zip(self.previous, latents, strict=True)], dim=1)
        x_BTC = F.pad(entering[:, :-1], (0, 0, 1, 0))
        coarser = [
            linear(torch.cat(latents[:scale], dim=-1))
            for scale, linear in enumerate(self.coarser, start=1)
        ]
        ids_BT = torch.arange(self.config.length, device=x_BTC.device).expand(len(x_BTC), -1)
        x_BTC = x_BTC + self.places(ids_BT)
        if coarser:  # none of a raster of one scale
            x_BTC = x_BTC + F.pad(torch.cat(coarser, dim=1), (0, 0, P, 0))
        bias = torch.cat(
            (
                self._caption_bias(mask_BL).expand(-1, 1, self.config.length, -1),
                self.causal_TT.expand(len(x_BTC), 1, -1, -1),
            ),
            dim=-1,
        ).to(x_BTC.dtype)
        prefix_BLD = self._prefix(states_BLD)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x_BTC = checkpoint(block, x_BTC, bias, prefix_BLD, use_reentrant=False)
            else:
                x_BTC = block(x_BTC, bias, prefix_BLD)
        parts = self.norm(x_BTC).split(P, dim=1)
        return [  # a Linear with frozen weights copies them for every record of a strided input
            head(part.contiguous(), z)
            for head, part, z in zip(self.heads, parts, latents, strict=True)
        ]

    def negative_log_likelihood(
        self, states_BLD: Tensor, mask_BL: Tensor, codes: Sequence[Tensor]
    ) -> Tensor:
        """Nats per code of every record, float32 (B,): the mean over all codes of the image."""
        total_B = torch.zeros(len(mask_BL), device=mask_BL.device)
        for index_BPK, logits_BPKV in zip(codes, self(states_BLD, mask_BL, codes), strict=True):
            losses_N = cross_entropy(logits_BPKV.flatten(0, 2), index_BPK.flatten())
            total_B = total_B + losses_N.view(len(mask_BL), -1).sum(1)
        return total_B / self.config.tokens

    def losses(self, batch: Batch) -> Tensor:
        """`negative_log_likelihood` of a batch."""
        return self.negative_log_likelihood(batch.states_BLD, batch.mask_BL, batch.codes)

    def make_trainable(self, lora_rank: int) -> None:
        """All parameters, or adapters of LORA_LAYERS."""
        self.requires_grad_(True)
        if lora_rank:
            add_lora(self, lora_rank, LORA_LAYERS)

    def random_codes(self, records: int, generator: torch.Generator) -> list[Tensor]:
        """Codes of images that do not exist."""
        shape = (records, self.config.positions, self.config.codes)
        return [torch.randint(n, shape, generator=generator) for n in self.config.codebook_sizes]

    def begin(self, states_BLD: Tensor, mask_BL: Tensor) -> Generation:
        """Start generating: see `Generation`."""
        return Generation(self, states_BLD, mask_BL)

    def _prefix(self, states_BLD: Tensor) -> Tensor:
        return F.layer_norm(states_BLD.to(self.norm.weight.dtype), states_BLD.shape[-1:])

    def _caption_bias(self, mask_BL: Tensor) -> Tensor:
        return torch.zeros(mask_BL.shape, device=mask_BL.device).masked_fill(~mask_BL, -torch.inf)[
            :, None, None, :
        ]


class Generation:
    """One pass through the positions with cached keys and values.

    Alternate `advance(latents)` with the position's codes drawn from `logits`. `latents` are those
    of every scale (B, positions, codes * code width), filled in as codes are drawn.
    """

    def __init__(self, model: WaveletGPT, states_BLD: Tensor, mask_BL: Tensor) -> None:
        self._model = model
        self._prefix: Tensor | None = model._prefix(states_BLD)
        self._caption_bias = model._caption_bias(mask_BL).to(self._prefix.dtype)
        length = states_BLD.shape[1] + model.config.length
        self._caches = [KeyValueCache(length) for _ in model.blocks]
        self._position = -1

    def advance(self, latents: Sequence[Tensor]) -> None:
        """Go to the next position."""
        self._position += 1
        model, t = self._model, self._position
        scale, place = divmod(t, model.config.positions)
        x_BC = model.places(torch.tensor([t] * len(latents[0]), device=latents[0].device))
        if t:
            before, at = divmod(t - 1, model.config.positions)
            x_BC = x_BC + model.previous[before](latents[before][:, at])
        if scale:
            coarser_BD = torch.cat([z[:, place] for z in latents[:scale]], dim=-1)
            x_BC = x_BC + model.coarser[scale - 1](coarser_BD)
        x_BTC = x_BC.unsqueeze(1)
        bias = F.pad(self._caption_bias, (0, t + 1))
        for block, cache in zip(model.blocks, self._caches, strict=True):
            x_BTC = block(x_BTC, bias, self._prefix, cache)
        self._prefix = None
        self._head = cast(CodeHead, model.heads[scale])
        self._entered_B1E = self._head.enter(model.norm(x_BTC))

    def keep(self, row_N: Tensor) -> None:
        """Go on with these rows of the batch, between two positions."""
        self._caption_bias = self._caption_bias[row_N]
        for cache in self._caches:
            cache.keep(row_N)

    def join(self, others: Sequence[Generation]) -> None:
        """Go on with the rows of others behind these, which are between the same positions."""
        self._caption_bias = torch.cat([one._caption_bias for one in (self, *others)])
        for own, *theirs in zip(self._caches, *(one._caches for one in others), strict=True):
            own.join(theirs)

    def logits(self, latents: Sequence[Tensor], code: int) -> Tensor:
        """Logits (B, codebook size) of one code of the present position."""
        scale, place = divmod(self._position, self._model.config.positions)
        own_B1D = latents[scale][:, place : place + 1]
        return self._head.answer(self._entered_B1E, own_B1D, slice(code, code + 1))[:, 0, 0]
