"""The benchmark at tiny size: every figure there, positive, and of the same computation."""

from __future__ import annotations

import json

import bench
import pytest
import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

from dpwg.config import ModelConfig
from dpwg.device import pick_precision
from dpwg.method.transformer import WaveletGPT
from dpwg.privacy.clipping import ClippedSums

CONFIG = ModelConfig(
    codebook_sizes=(8, 12, 16), width=16, blocks=1, heads=2, code_hidden=16, text_tokens=6
)


def test_every_figure_is_there_and_follows_from_the_others(root) -> None:
    measured = bench.measure(
        root / "faces" / "public", micro_batches=(2, 3), repetitions=1, upsampler="bicubic"
    )
    assert json.loads(json.dumps(measured, allow_nan=False)).keys() == measured.keys()
    speed, peaks = measured["examples_per_second"], measured["peak_bytes"]
    assert set(speed) == set(measured["micro_batch"]) == set(bench.WAYS)
    for slow, fast, name in (
        ("private", "nonprivate", "private_over_nonprivate"),
        ("private_lora", "nonprivate_lora", "private_lora_over_nonprivate_lora"),
        ("opacus_ghost", "private", "opacus_ghost_over_private"),
        ("opacus_hooks", "private", "opacus_hooks_over_private"),
    ):
        assert 0 < measured[name] == pytest.approx(speed[fast] / speed[slow])
    assert measured["private_memory_over_nonprivate"] == peaks["private"] / peaks["nonprivate"]
    assert set(peaks) == {*bench.WAYS, "sampling"}
    assert all(100e6 < peak < 4e9 for peak in peaks.values())
    seconds = measured["seconds_per_image"]
    assert set(seconds) == {"text", "tokens", "upsampling", "total"}
    assert 0 < seconds["tokens"] < seconds["total"]
    assert 0.2 < measured["seconds_to_ready"] < 300
    assert set(measured["micro_batch"].values()) <= {2, 3}
    assert all(share > 0 for share in measured["share_of_peak"].values())
    assert measured["settings"]["precision"] == pick_precision(torch.device("cpu"))


def test_the_share_of_the_peak_counts_three_products_of_every_weight() -> None:
    layers = [m for m in WaveletGPT(CONFIG).blocks.modules() if isinstance(m, torch.nn.Linear)]
    positions = {True: CONFIG.text_tokens, False: CONFIG.length}
    least = sum(
        6 * positions[layer.in_features == CONFIG.text_width] * layer.weight.numel()
        for layer in layers
    )
    assert least < bench._flops(CONFIG, "bfloat16") < 4 * least


def test_the_steps_take_turns() -> None:
    order: list[str] = []
    ways = {
        name: (lambda name=name: order.append(name), lambda name=name: order.append(name * 2), 1)
        for name in "abc"
    }
    seconds = bench._take_turns(ways, repetitions=2)
    assert order == ["a", "aa", "b", "bb", "c", "cc"] * 3
    assert seconds.keys() == {"a", "b", "c"}


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_opacus_computes_the_same_as_the_private_step() -> None:
    model = bench._losses(CONFIG, "float32")
    clipped = ClippedSums(model, max_grad_norm=bench.MAX_GRAD_NORM)
    inputs = bench._inputs(CONFIG, 4)
    norms_B = clipped.add(lambda: model(*inputs)).norms_B
    losses = bench._losses_for_opacus(CONFIG, "float32")
    sampled = GradSampleModuleFastGradientClipping(
        losses, loss_reduction="sum", max_grad_norm=bench.MAX_GRAD_NORM
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(losses.parameters(), lr=0.0), **bench._terms(4)
    )
    DPTensorFastGradientClipping(sampled, optimizer, sampled(*inputs), "sum").backward()
    torch.testing.assert_close(sampled.per_sample_gradient_norms, norms_B, rtol=1e-4, atol=0)
    ours = torch.cat([total.flatten() for total in clipped.sums.values()])
    theirs = {name.replace(".layer.", "."): p.grad for name, p in losses.named_parameters()}
    expected = torch.cat([theirs[name].flatten() for name in clipped.sums])
    assert (ours - expected).norm() < 1e-4 * expected.norm()
