"""What training costs on this device: products a second, and examples a second of a private run."""

from __future__ import annotations

import copy
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from dpwg.device import pick_precision
from dpwg.method.transformer import WaveletGPT
from dpwg.privacy.accounting import PrivacyPlan
from dpwg.training.private import Finetuning
from dpwg.training.processes import Ranks
from dpwg.training.rehearsal import rehearse

SIDE = {"cpu": 1024, "cuda": 8192}
"""The side of the matrices that the peak is measured with: large enough for it, no larger."""


def matrix_flops(ranks: Ranks) -> float:
    """Floating-point operations a second of large matrix products in the fastest precision, of all
    processes together: the best of several.
    """
    device = ranks.device
    side, dtype = SIDE[device.type], getattr(torch, pick_precision(device))
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        c = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
        del c
    return ranks.world * 2 * side**3 / best


def training_flops(model: WaveletGPT) -> float:
    """Floating-point operations of one example forward and back, counted without computing any."""
    config = model.config
    with torch.device("meta"):
        worker = WaveletGPT(config)
        states_BLD = torch.empty(1, config.text_tokens, config.text_width)
        mask_BL = torch.empty(1, config.text_tokens, dtype=torch.bool)
        codes = [
            torch.empty(1, config.positions, config.codes, dtype=torch.int64)
            for _ in config.codebook_sizes
        ]
        with FlopCounterMode(display=False) as counter:
            logits = worker(states_BLD, mask_BL, codes)
            torch.stack([part.sum() for part in logits]).sum().backward()
    return float(counter.get_total_flops())


def private_rate(model: WaveletGPT, settings: Finetuning, ranks: Ranks) -> float:
    """Examples a second of a private step, all processes together, on made-up records."""
    plan = PrivacyPlan(
        records=settings.micro_batch,
        batch_size=settings.micro_batch,
        steps=2,
        delta=1e-9,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    told = rehearse(copy.deepcopy(model), plan, settings, ranks)
    return settings.micro_batch * ranks.world / told.seconds_per_micro_batch
