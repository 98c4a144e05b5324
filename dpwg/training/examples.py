"""Training examples as tensors, drawn in batches: caption states, and the codes of every scale."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from dpwg.method.generator import Batch


class Examples:
    """All records of a set, one example a record.

    A record is one image with its captions, or all images of a group: `group_I` numbers the group
    of each image from 0. However many images and captions a record has, each visit draws one image
    and one of its captions, so that a record is one loss and one gradient. `digest` says which
    records these are.

    `captions` hold each different caption once, and of it the tokens that it has: `tokens` (T, D)
    one caption behind the other, their `length` (R,), and `row` (C,), the caption behind each of
    the records' `count` (I,) captions; or, of a small set, padded `states` (C, L, D) and `mask`.
    """

    def __init__(
        self,
        captions: dict[str, Tensor],
        codes: dict[str, Tensor],
        *,
        digest: str = "",
        group_I: Tensor | None = None,
    ) -> None:
        self.digest = digest
        if "states" in captions:
            captions = _unpadded(captions)
        self._tokens_TD, self._length_R = captions["tokens"], captions["length"]
        self._token_R = self._length_R.cumsum(0) - self._length_R
        self._row_C, self._count_I = captions["row"], captions["count"]
        self._first_I = self._count_I.cumsum(0) - self._count_I
        self._empty_states_LD, self._empty_mask_L = captions["empty_states"], captions["empty_mask"]
        self._codes = [codes[name] for name in sorted(codes)]
        if (self._count_I < 1).any():
            record = int((self._count_I < 1).nonzero()[0])
            raise ValueError(f"Expected a caption or more of every record, found none of {record}.")
        if len(self._count_I) != len(self._codes[0]):
            raise ValueError(
                f"Expected captions of {len(self._codes[0])} records, found {len(self._count_I)}; "
                "encode captions and images of the same set."
            )
        if group_I is None:
            group_I = torch.arange(len(self._count_I))
        if len(group_I) != len(self._count_I):
            raise ValueError(
                f"Expected a group of each of {len(self._count_I)} images, found {len(group_I)}."
            )
        self._image_I = group_I.argsort(stable=True)
        self._images_N = group_I.bincount()
        self._place_N = self._images_N.cumsum(0) - self._images_N
        if (self._images_N < 1).any():
            group = int((self._images_N < 1).nonzero()[0])
            raise ValueError(f"Expected an image or more of every group, found none of {group}.")

    def __len__(self) -> int:
        return len(self._images_N)

    @property
    def images(self) -> int:
        """How many images there are in all records."""
        return int(self._images_N.sum())

    @property
    def cut(self) -> int:
        """How many captions fill all that the text encoder reads; what is behind is cut off."""
        return int((self._length_R[self._row_C] >= len(self._empty_mask_L)).sum())

    @property
    def repeated(self) -> int:
        """How many records hold an image that another one holds too, as their codes tell: private.

        The promise is made to each record; of what is in k of them epsilon is k times as large, or
        more at the same delta.
        """
        own_I = self._image_I[: self.images]
        codes_IC = torch.cat([scale_IPK.flatten(1)[own_I] for scale_IPK in self._codes], dim=1)
        rows_I = codes_IC.numpy().view(np.dtype((np.void, codes_IC[0].nbytes)))
        _, image_I = np.unique(rows_I, return_inverse=True)
        record_I = np.repeat(np.arange(len(self)), self._images_N.numpy())
        pairs = np.unique(np.stack((image_I.ravel(), record_I), axis=1), axis=0)
        held_I = np.bincount(pairs[:, 0])[pairs[:, 0]]
        return len(np.unique(pairs[held_I > 1, 1]))

    def first(self, count: int) -> Examples:
        """The first `count` examples, without copying."""
        part = copy.copy(self)
        part._images_N, part._place_N = self._images_N[:count], self._place_N[:count]
        part.digest = ""
        return part

    def first_codes(self, scale: int) -> Tensor:
        """The codes of one scale of each record's first image, (N, positions, codes)."""
        return self._codes[scale][self._image_I[self._place_N]].long()

    def batch(
        self, indices_B: Tensor, *, draw_B: Tensor | None = None, dropped_B: Tensor | None = None
    ) -> Batch:
        """The examples at these indices.

        `draw_B` in [0, 1) picks one of each record's images and of that one's captions, the first
        without it; captions that are `dropped_B` are empty.
        """
        if draw_B is None:
            draw_B = torch.zeros(len(indices_B), dtype=torch.float64)
        scaled_B = draw_B * self._images_N[indices_B]
        image_B = self._image_I[self._place_N[indices_B] + scaled_B.long()]
        caption_B = self._first_I[image_B] + (scaled_B.frac() * self._count_I[image_B]).long()
        row_B = self._row_C[caption_B]
        place_L = torch.arange(len(self._empty_mask_L))
        mask_BL = place_L < self._length_R[row_B, None]
        states_BLD = torch.zeros(
            *mask_BL.shape, self._tokens_TD.shape[1], dtype=self._tokens_TD.dtype
        )
        states_BLD[mask_BL] = self._tokens_TD[(self._token_R[row_B, None] + place_L)[mask_BL]]
        if dropped_B is not None:
            states_BLD[dropped_B], mask_BL[dropped_B] = self._empty_states_LD, self._empty_mask_L
        codes = [part_I[image_B] for part_I in self._codes]
        codes = [part_B if part_B.is_floating_point() else part_B.long() for part_B in codes]
        return Batch(states_BLD=states_BLD, mask_BL=mask_BL, codes=codes, draw_B=draw_B)


def _unpadded(captions: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of padded captions as `Examples` holds them."""
    mask_CL = captions["mask"]
    held = {name: captions[name] for name in ("count", "empty_states", "empty_mask")}
    return {
        **held,
        "tokens": captions["states"][mask_CL],
        "length": mask_CL.sum(1),
        "row": torch.arange(len(mask_CL)),
    }
