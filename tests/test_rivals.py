"""DP-LlamaGen: one scale of codes, row by row, through the same engine."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from test_recipe import source
from tiny import shrunk

from dpwg.config import ModelConfig, TokenizerConfig
from dpwg.method.captions import EncodedText
from dpwg.method.pipeline import DPWaveletPipeline, GenerationResult
from dpwg.method.predictive import new_tokenizer
from dpwg.method.rivals.raster import UNDRAWN, RasterTokenizer
from dpwg.method.sampling import Sampling, sample
from dpwg.method.transformer import WaveletGPT
from dpwg.release.folder import load_release
from dpwg.training import family as recipe
from dpwg.training.family import train_family
from dpwg.training.presets import FAMILIES, get_preset

RASTER = TokenizerConfig(
    coarse_size=16, levels=0, grid=4, split=1, codebook_sizes=(12,), width=16, heads=2,
    encoder_blocks=1, decoder_blocks=1,
)  # fmt: skip


def test_a_code_is_a_patch_and_what_is_not_drawn_is_grey() -> None:
    tokenizer = new_tokenizer(RASTER)
    assert isinstance(tokenizer, RasterTokenizer)
    image_BCHW = torch.rand(40, 3, 16, 16)
    tokenizer.initialise_from(image_BCHW)
    (index_BPK,) = codes = tokenizer.encode(image_BCHW[:2])
    assert index_BPK.shape == (2, 16, 1)
    whole_BCHW = tokenizer.decode(codes)
    index_BPK = index_BPK.clone()
    index_BPK[:, 4:] = UNDRAWN
    part_BCHW = tokenizer.decode([index_BPK])
    assert (part_BCHW[:, :, 4:] == 0.5).all()
    assert torch.equal(part_BCHW[:, :, :4], tokenizer.decode([index_BPK.clamp(min=0)])[:, :, :4])
    assert part_BCHW.shape == whole_BCHW.shape == (2, 3, 16, 16)


def test_rows_come_one_by_one_and_stay() -> None:
    torch.manual_seed(0)
    config = ModelConfig.for_tokenizer(
        RASTER, text_width=8, text_tokens=5, width=16, blocks=1, heads=2, code_hidden=8
    )
    model = WaveletGPT(config).double()
    text = EncodedText(states_BLD=torch.randn(2, 5, 8), mask_BL=torch.ones(2, 5, dtype=torch.bool))
    empty = EncodedText(states_BLD=torch.ones(1, 5, 8), mask_BL=torch.arange(5)[None] < 2)
    *rows, (last_BPK,) = sample(model, text, empty, [3, 4], Sampling(temperature=1.0))
    assert len(rows) == 3
    assert last_BPK.min() >= 0
    for number, (row_BPK,) in enumerate(rows, start=1):
        assert torch.equal(row_BPK[:, : 4 * number], last_BPK[:, : 4 * number])
        assert (row_BPK[:, 4 * number :] == UNDRAWN).all()
    # a code has no part in what comes before it
    changed_BPK = last_BPK.clone()
    changed_BPK[:, 9] = (changed_BPK[:, 9] + 1) % 12
    given = (text.states_BLD.double(), text.mask_BL)
    (before,), (after,) = model(*given, [last_BPK]), model(*given, [changed_BPK])
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.equal(before[:, 10:], after[:, 10:])


def test_the_family_trains_privately_and_draws(tmp_path, monkeypatch) -> None:
    small = shrunk(get_preset("llamagen-128"), 16)
    small = dataclasses.replace(
        small,
        tokenizer_training=dataclasses.replace(small.tokenizer_training, batch=8),
        pretraining=dataclasses.replace(small.pretraining, batch=2),
        finetuning=dataclasses.replace(small.finetuning, micro_batch=2, lora_rank=2),
    )
    monkeypatch.setattr(recipe, "get_preset", lambda name: small)
    monkeypatch.setattr(recipe, "REHEARSED", 3)
    monkeypatch.setattr(recipe, "private_rate", lambda model, settings, ranks: 25.0)
    family, out = FAMILIES["celeba/dp-llamagen"], tmp_path / "out"
    steps = train_family(
        family, source(tmp_path), out, tmp_path / "run", minutes=0.02, clock=lambda: 0.0
    )
    done = [report.stage for report in steps if report.done is not None]
    assert done == ["tokenizer", "public", "eps-10", "eps-1", "eps-inf"]
    release = load_release(out / "eps-10")
    assert (release.family, release.upsampler) == ("dp-llamagen", "none")
    assert release.card.epsilon == pytest.approx(10, rel=0.01)
    assert load_release(out / "eps-inf").card.epsilon in (None, math.inf)
    assert not any("upsampler" in item["name"] for item in release.card.public_inputs)
    *stages, result = DPWaveletPipeline.from_pretrained(out / "eps-10").stages("a man")
    assert isinstance(result, GenerationResult)
    assert (len(stages), stages[0].steps) == (16, 16)
    assert result.image.shape == result.coarse.shape == (1, 128, 128, 3)
    assert (result.image == result.coarse).all()
    assert result.bands[0].shape[-1] == 8
