"""DP-LlamaGen and DP-LDM: other generators through the same engine."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from test_recipe import source
from tiny import shrunk
from torch.nn import functional as F

from dpwg.config import AutoencoderConfig, DiffusionConfig, ModelConfig, TokenizerConfig
from dpwg.measure.engine_audit import CanaryModel, canary_examples
from dpwg.method.captions import EncodedText
from dpwg.method.families import new_tokenizer
from dpwg.method.generator import Batch
from dpwg.method.pipeline import DPWaveletPipeline, GenerationResult
from dpwg.method.rivals.latents import LatentAutoencoder, LatentDiffusion
from dpwg.method.rivals.raster import UNDRAWN, RasterTokenizer, sample_rows
from dpwg.method.sampling import Sampling
from dpwg.method.transformer import WaveletGPT
from dpwg.privacy.accounting import PrivacyPlan
from dpwg.privacy.preflight import trainable_layers
from dpwg.release.folder import load_release
from dpwg.training import family as recipe
from dpwg.training.autoencoder import AutoencoderTraining, train_autoencoder
from dpwg.training.examples import Examples
from dpwg.training.family import train_family
from dpwg.training.optimizer import finished
from dpwg.training.presets import FAMILIES, Preset, get_preset
from dpwg.training.private import Finetuning, PrivateTraining
from dpwg.training.public_model import Pretraining, pretrain
from dpwg.training.sources import Source

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
    *rows, (last_BPK,) = sample_rows(model, text, empty, [3, 4], Sampling(temperature=1.0))
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


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Source:
    """Records whose captions are encoded once."""
    return source(tmp_path_factory.mktemp("photos"))


def tiny(name: str) -> Preset:
    """A rival's preset with tiny models."""
    own = get_preset(name)
    if name == "ldm-128":
        return dataclasses.replace(
            own,
            tokenizer=AutoencoderConfig(widths=(4, 4, 8, 8), groups=2),
            model=DiffusionConfig(widths=(8, 16), head_width=8, groups=4),
            tokenizer_training=dataclasses.replace(own.tokenizer_training, batch=2, critic=0.01),
            pretraining=dataclasses.replace(own.pretraining, batch=2),
            finetuning=dataclasses.replace(own.finetuning, micro_batch=2),
        )
    small = shrunk(own, 16)
    return dataclasses.replace(
        small,
        tokenizer_training=dataclasses.replace(small.tokenizer_training, batch=8),
        pretraining=dataclasses.replace(small.pretraining, batch=2),
        finetuning=dataclasses.replace(small.finetuning, micro_batch=2, lora_rank=2),
    )


@pytest.mark.parametrize(
    ("name", "preset", "stages"),
    [
        pytest.param("dp-llamagen", "llamagen-128", 16, marks=pytest.mark.slow),
        ("dp-ldm", "ldm-128", 30),
    ],
)
def test_a_rivals_family_trains_privately_and_draws(
    name: str, preset: str, stages: int, photos: Source, tmp_path, monkeypatch
) -> None:
    small = tiny(preset)
    monkeypatch.setattr(recipe, "get_preset", lambda name: small)
    monkeypatch.setattr(recipe, "REHEARSED", 3)
    monkeypatch.setattr(recipe, "private_rate", lambda model, settings, ranks: 25.0)
    family, out = FAMILIES[f"celeba/{name}"], tmp_path / "out"
    steps = train_family(family, photos, out, tmp_path / "run", minutes=0.02, clock=lambda: 0.0)
    done = [report.stage for report in steps if report.done is not None]
    assert done == ["tokenizer", "public", "eps-10", "eps-1", "eps-inf"]
    release = load_release(out / "eps-10")
    assert (release.family, release.upsampler) == (name, "none")
    assert release.card.epsilon == pytest.approx(10, rel=0.01)
    assert load_release(out / "eps-inf").card.epsilon in (None, math.inf)
    assert not any("upsampler" in item["name"] for item in release.card.public_inputs)
    pipeline = DPWaveletPipeline.from_pretrained(out / "eps-10")
    *drawn, result = pipeline.stages(["a man", "a woman"], seed=3)
    assert isinstance(result, GenerationResult)
    assert (len(drawn), drawn[0].steps) == (stages, stages)
    assert result.image.shape == result.coarse.shape == (2, 128, 128, 3)
    assert (result.image == result.coarse).all()
    assert result.bands[0].shape[-1] == 8
    alone = pipeline("a woman", seed=4)
    assert (alone.image[0] == result.image[1]).all()


def test_diffusion_trains_its_attention_and_the_captions_projection_alone() -> None:
    model = LatentDiffusion(DiffusionConfig(widths=(8, 16), head_width=8, groups=4, text_width=8))
    model.make_trainable(0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(n.startswith("caption.") or ".transformer_blocks." in n for n in trained)
    assert set(trainable_layers(model))  # each of them has a rule in the private engine
    with pytest.raises(ValueError, match="lora_rank=0"):
        model.make_trainable(4)


def test_a_records_noise_is_its_own() -> None:
    """Neither order nor company of the records changes a loss, and the signal's energy falls."""
    torch.manual_seed(0)
    config = DiffusionConfig(widths=(8, 16), head_width=8, groups=4, text_width=8, size=8)
    model = LatentDiffusion(config).double()
    whole = Batch(
        states_BLD=torch.randn(4, 5, 8),
        mask_BL=torch.arange(5)[None] < torch.tensor([5, 3, 2, 4])[:, None],
        codes=[torch.randn(4, 4, 8, 8, dtype=torch.float64)],
        draw_B=torch.rand(4, dtype=torch.float64),
    )
    order_B = torch.tensor([2, 0])
    part = Batch(
        states_BLD=whole.states_BLD[order_B],
        mask_BL=whole.mask_BL[order_B],
        codes=[whole.codes[0][order_B]],
        draw_B=whole.draw_B[order_B],
    )
    torch.testing.assert_close(model.losses(part), model.losses(whole)[order_B])
    assert model.losses(whole).std() > 0
    assert (model.bfloat16().kept == model.float().kept).all()
    assert 0.99 < model.kept[0] < 1
    assert model.kept[-1] < 0.01
    assert (model.kept.diff() < 0).all()


def test_latents_come_back_as_images() -> None:
    """An autoencoder that is trained a little beats grey, and its latents have a deviation of 1."""
    torch.manual_seed(0)
    model = LatentAutoencoder(AutoencoderConfig(coarse_size=16, widths=(16, 16), groups=4))
    small_NChw = torch.rand(40, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    images_NCHW = (255 * F.interpolate(small_NChw, (16, 16), mode="bilinear")).byte()
    settings = AutoencoderTraining(steps=300, batch=8, warmup=5, learning_rate=2e-3, ema_decay=0.9)
    finished(train_autoencoder(model, images_NCHW, settings))
    target = images_NCHW.float() / 255
    latents = model.encode(target)
    assert latents[0].shape == (40, 4, 8, 8)
    assert latents[0].std() == pytest.approx(1, abs=0.1)
    assert (model.decode(latents) - target).abs().mean() < 0.5 * (target - 0.5).abs().mean()


def test_public_training_draws_a_noise_for_every_record(monkeypatch) -> None:
    """PyTorch's generator takes 32 bits of a seed: the numbers of a batch must differ in them."""
    seen: list[int] = []
    config = DiffusionConfig(widths=(8, 16), head_width=8, groups=4, text_width=8, size=8)
    model, drawn = LatentDiffusion(config), LatentDiffusion._drawn

    def watched(self, batch):
        level_B, noise_BChw = drawn(self, batch)
        seen.extend(noise_BChw.flatten(1)[:, 0].tolist())
        return level_B, noise_BChw

    monkeypatch.setattr(LatentDiffusion, "_drawn", watched)
    N = 64
    captions = {
        "states": torch.randn(N, 5, 8),
        "mask": torch.ones(N, 5, dtype=torch.bool),
        "count": torch.ones(N, dtype=torch.int64),
        "empty_states": torch.zeros(5, 8),
        "empty_mask": torch.ones(5, dtype=torch.bool),
    }
    codes = {"codes_0": torch.randn(N, 4, 8, 8)}
    settings = Pretraining(steps=3, batch=N, warmup=1)
    finished(pretrain(model, Examples(captions, codes), settings, None))
    assert len(set(seen)) == len(seen) == 3 * N


def test_what_learns_from_the_draws_of_others_is_refused() -> None:
    """A loss that sees the numbers of the whole batch sees which records were sampled."""

    class Leaky(CanaryModel):
        def losses(self, batch: Batch) -> torch.Tensor:
            return super().losses(batch) * (1 + batch.draw_B.sum().float())

    included_M = np.ones(40, dtype=bool)
    plan = PrivacyPlan(
        records=40, batch_size=10, steps=1, delta=1e-3, noise_multiplier=1.0, max_grad_norm=1.0
    )
    settings = Finetuning(lora_rank=0, micro_batch=4, precision="float32")
    model = Leaky(40, pull=1.0)
    training = PrivateTraining(model, canary_examples(included_M), plan, settings)
    with pytest.raises(ValueError, match="whatever records stand beside it"):
        next(training.run())
