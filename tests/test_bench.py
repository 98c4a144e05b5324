"""The benchmark at tiny size: every figure there, positive, and of the same computation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench
import pytest
import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

from dpwg.config import ModelConfig
from dpwg.device import pick_precision
from dpwg.method.encoders import default_encoder
from dpwg.method.transformer import WaveletGPT
from dpwg.privacy.accounting import Ledger
from dpwg.privacy.card import PrivacyCard
from dpwg.privacy.clipping import ClippedSums
from dpwg.release.folder import Release, save_release

CONFIG = ModelConfig(
    codebook_sizes=(8, 12, 16), width=16, blocks=1, heads=2, code_hidden=16, text_tokens=6
)
RATIOS = {
    "private_over_nonprivate": ("private", "nonprivate"),
    "private_lora_over_nonprivate_lora": ("private_lora", "nonprivate_lora"),
    "opacus_ghost_over_private": ("opacus_ghost", "private"),
    "opacus_hooks_over_private": ("opacus_hooks", "private"),
}


@pytest.fixture(scope="module")
def measured(make_tokenizer, tmp_path_factory) -> dict[str, Any]:
    tokenizer = make_tokenizer()
    release = Release(
        model=WaveletGPT.for_tokenizer(tokenizer, width=16, blocks=1, heads=2, code_hidden=16),
        tokenizer=tokenizer,
        card=PrivacyCard.from_ledger(
            Ledger(),
            delta=1e-5,
            dataset="none",
            records=0,
            max_grad_norm=None,
            public_inputs=[],
        ),
        text_encoder=default_encoder().id,
    )
    folder: Path = tmp_path_factory.mktemp("release")
    save_release(folder, release)
    return bench.measure(folder, micro_batches=(2, 3), repetitions=1, upsampler="bicubic")


def test_ratios_are_those_of_the_examples_per_second(measured) -> None:
    speed = measured["examples_per_second"]
    assert set(speed) == set(bench.WAYS)
    assert all(measured[name] > 0 for name in RATIOS)
    for name, (slow, fast) in RATIOS.items():
        assert measured[name] == pytest.approx(speed[fast] / speed[slow])


def test_times_and_memory_are_there_and_plausible(measured) -> None:
    seconds = measured["seconds_per_image"]
    assert set(seconds) == {"text", "tokens", "upsampling", "total"}
    assert 0 < seconds["tokens"] < seconds["total"]
    assert 0.2 < measured["seconds_to_ready"] < 300
    assert set(measured["peak_bytes"]) == {*bench.WAYS, "sampling"}
    assert all(100e6 < peak < 4e9 for peak in measured["peak_bytes"].values())
    peaks = measured["peak_bytes"]
    assert measured["private_memory_over_nonprivate"] == peaks["private"] / peaks["nonprivate"]


def test_the_share_of_the_peak_counts_three_products_of_every_weight(measured) -> None:
    assert all(share > 0 for share in measured["share_of_peak"].values())
    layers = [m for m in WaveletGPT(CONFIG).blocks.modules() if isinstance(m, torch.nn.Linear)]
    positions = {True: CONFIG.text_tokens, False: CONFIG.length}
    least = sum(
        6 * positions[layer.in_features == CONFIG.text_width] * layer.weight.numel()
        for layer in layers
    )
    assert least < bench._flops(CONFIG, "bfloat16") < 4 * least
    assert 1e7 < bench._matrix_peak(CONFIG, 2, "bfloat16") < 1e14


def test_the_answer_says_what_was_measured_and_where_as_json(measured) -> None:
    assert json.loads(json.dumps(measured, allow_nan=False)).keys() == measured.keys()
    assert measured["settings"]["micro_batches"] == [2, 3]
    assert set(measured["micro_batch"].values()) <= {2, 3}
    assert measured["settings"]["precision"] == pick_precision(torch.device("cpu"))
    assert measured["machine"]["torch"] == torch.__version__
    assert measured["machine"]["cpu"]
    assert any("Opacus" in note for note in measured["notes"])


def test_the_steps_take_turns() -> None:
    order: list[str] = []
    ways = {
        name: (
            lambda name=name: order.append(name),
            lambda name=name: order.append(name.upper()),
            1,
        )
        for name in "abc"
    }
    seconds = bench._take_turns(ways, repetitions=2)
    assert "".join(order) == "aAbBcC" * 3
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


@pytest.mark.parametrize(
    "change", [{"micro_batches": ()}, {"micro_batches": (0,)}, {"repetitions": 0}]
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"micro_batches=.*repetitions="):
        bench.measure("faces/public", **change)
