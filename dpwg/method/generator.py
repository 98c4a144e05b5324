"""What the rest of the program needs of a text-to-image generator, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NATS = "nats per code"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What generators train on: caption states and mask, the `codes` that a tokenizer made of the
    images, and a random number in [0, 1) of each record's own, for whatever its loss draws.
    """

    states_BLD: Tensor
    mask_BL: Tensor
    codes: Sequence[Tensor]
    draw_B: Tensor

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
            codes=[moved(part) for part in self.codes],
            draw_B=self.draw_B,
        )


class Generator(nn.Module):
    """A model of codes given captions, in which no record sees another."""

    config: Any
    unit = NATS
    """What its losses are."""
    checkpointing = False
    """Whether training may compute activations twice instead of keeping them."""

    def losses(self, batch: Batch) -> Tensor:
        """One loss a record, float32 (B,), of its own row of the batch alone."""
        raise NotImplementedError

    def make_trainable(self, lora_rank: int) -> None:
        """Ask for the gradients of what private training trains, by adapters of that rank or, with
        0, as it is; freeze the rest.
        """
        self.requires_grad_(True)

    def random_codes(self, records: int, generator: torch.Generator) -> list[Tensor]:
        """Codes of images that do not exist, to see how fast training is."""
        raise NotImplementedError
