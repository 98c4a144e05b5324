"""Records as tensors: the coarse images that everything is trained on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dpwg.data.avatars import IMAGE_SIZE
from dpwg.data.records import Records
from dpwg.wavelet import coarse_image


def coarse_batches(records: Records, coarse_size: int, batch: int = 250) -> Iterator[Tensor]:
    """Coarse images of all records in order, uint8 (b, 3, coarse_size, coarse_size) a batch.

    Each image is brought to 128x128 first, so that its Haar LL band has the coarse size.
    """
    levels = (IMAGE_SIZE // coarse_size).bit_length() - 1
    for start in range(0, len(records), batch):
        images = [
            torch.tensor(records[index].image(IMAGE_SIZE))
            for index in range(start, min(start + batch, len(records)))
        ]
        image_BCHW = torch.stack(images).permute(0, 3, 1, 2).float()
        yield coarse_image(image_BCHW, levels).round().to(torch.uint8)
