"""Presets: their sizes, a shrunk copy of each trained from pixels to pictures, plans, switches."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from tiny import shrunk
from torch.autograd.graph import saved_tensors_hooks

from dpwg.cli import main
from dpwg.config import MINILM
from dpwg.data import open_records
from dpwg.method.captions import TextEncoder
from dpwg.method.encoders import default_encoder
from dpwg.method.families import new_tokenizer
from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.method.transformer import WaveletGPT
from dpwg.modules import SHIPPED, module_sha256
from dpwg.privacy.accounting import PrivacyPlan
from dpwg.privacy.card import PrivacyCard
from dpwg.privacy.clipping import ClippedSums
from dpwg.release.folder import Release, load_release, save_release
from dpwg.release.provenance import TOKENIZER_SHA256, public_inputs, tokenizer_input
from dpwg.release.shared import save_tokenizer
from dpwg.training.encodings import prepare_examples
from dpwg.training.presets import PRESETS, Preset, get_preset
from dpwg.training.private import PrivateTraining
from dpwg.training.processes import Ranks
from dpwg.training.public_model import Pretraining, pretrain
from dpwg.training.tokenizer import train_tokenizer
from dpwg.training.upsampler import train_superresolution
from dpwg.upsampling.superresolution import SuperResolution, save_superresolution
from dpwg.upsampling.upsamplers import WaveletUpsampler, get_upsampler

LARGE = "photo-256"
KINDS = {"faces-128": "bert", "photos-128": "bert", LARGE: "clip"}


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_large_preset_has_the_sizes_of_the_papers_family() -> None:
    preset = get_preset(LARGE)
    with torch.device("meta"):
        assert 340e6 < parameters(WaveletGPT(preset.model)) < 370e6
    assert preset.model.positions * preset.model.codes == 256
    assert (preset.tokenizer.coarse_size, preset.image_size) == (64, 256)


def test_what_ships_is_a_preset(make_tokenizer) -> None:
    release, preset = load_release("faces/public"), get_preset("faces-128")
    assert (release.tokenizer.config, release.model.config) == (preset.tokenizer, preset.model)
    assert (release.text_encoder.name, preset.text_encoder) == (MINILM, MINILM)
    assert preset.image_size == 128
    assert module_sha256(SHIPPED / "tokenizer") == TOKENIZER_SHA256
    assert tokenizer_input(TOKENIZER_SHA256) in release.card.public_inputs
    with pytest.raises(ValueError, match="tokenizer --preset photo-256"):
        get_preset(LARGE).new_model(make_tokenizer(), default_encoder())


def small_preset(name: str) -> Preset:
    preset = shrunk(get_preset(name), 16)
    small = {"steps": 2, "batch": 4, "warmup": 1}
    return replace(
        preset,
        tokenizer_training=replace(preset.tokenizer_training, **small),
        superresolution_training=replace(preset.superresolution_training, **small, neighbours=2),
        pretraining=replace(preset.pretraining, **small),
        finetuning=replace(preset.finetuning, micro_batch=4, lora_rank=2, warmup=1),
    )


@pytest.mark.parametrize("name", KINDS)
def test_a_shrunk_copy_trains_from_pixels_to_pictures(
    name, encoders, image_folder, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr("dpwg.training.encodings.CHUNK", 12)
    full, preset, kind = get_preset(name), small_preset(name), KINDS[name]
    tiny = kind != "bert"
    encoder = TextEncoder.from_folder(encoders / "tiny" / kind) if tiny else default_encoder()
    assert encoder.id.kind == kind
    assert preset.tokenizer.tokens == full.tokenizer.tokens
    assert preset.model.code_widths == full.model.code_widths
    # 1. the public parts, from pixels
    records = open_records(str(image_folder))
    size, coarse = preset.image_size, preset.tokenizer.coarse_size
    images_NCHW = torch.stack(
        [torch.tensor(record.image(size)).permute(2, 0, 1) for record in records]
    )
    coarse_NChw = torch.nn.functional.avg_pool2d(images_NCHW.float(), size // coarse)
    torch.manual_seed(0)
    tokenizer = new_tokenizer(preset.tokenizer)
    upscaler = SuperResolution(preset.superresolution)
    steps = [
        *train_tokenizer(tokenizer, coarse_NChw.to(torch.uint8), preset.tokenizer_training),
        *train_superresolution(upscaler, tokenizer, images_NCHW, preset.superresolution_training),
    ]
    save_superresolution(tmp_path / "upsampler", upscaler)
    tokenizer.requires_grad_(False).eval()
    examples = prepare_examples(records, encoder, tokenizer, tmp_path / "cache")
    model = preset.new_model(tokenizer, encoder)
    steps += pretrain(model, examples, preset.pretraining, tmp_path / "run")
    assert [report.step for report in steps] == [2, 2, 2]
    # 2. privately
    plan = PrivacyPlan(
        records=12, batch_size=12, steps=2, delta=1e-3, noise_multiplier=2.0, max_grad_norm=0.1
    )
    before = copy.deepcopy(model).parameters()
    training = PrivateTraining(model.requires_grad_(True), examples, plan, preset.finetuning)
    assert [report.refused for report in training.run()] == [0, 0]
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    # 3. to pictures
    save_tokenizer(tmp_path / "tokenizer", tokenizer)
    digest = module_sha256(tmp_path / "tokenizer")
    inputs = public_inputs("public mine", 12, encoder.id, digest, rendered=False)
    assert inputs[0]["source"] == "declared public by its user"
    assert not any("this project" in item["source"] for item in (inputs[0], inputs[-1]))
    card = PrivacyCard.from_ledger(
        training.ledger,
        delta=plan.delta,
        dataset=records.name,
        records=12,
        max_grad_norm=plan.max_grad_norm,
        public_inputs=inputs,
    )
    release = Release(model=model, tokenizer=tokenizer, card=card, text_encoder=encoder.id)
    save_release(tmp_path / "release", release)
    pipeline = DPWaveletPipeline(load_release(tmp_path / "release"), encoder)
    result = pipeline("a face", seed=1, upsampler=WaveletUpsampler(tmp_path / "upsampler"))
    assert result.coarse.shape == (1, coarse, coarse, 3)
    assert result.image.shape == (1, size, size, 3)
    smooth = get_upsampler("bicubic")(torch.tensor(result.coarse).permute(0, 3, 1, 2) / 255)
    assert smooth.shape == (1, 3, size, size)


def test_a_plan_of_a_preset_needs_no_model_and_no_data(capsys, monkeypatch) -> None:
    small = small_preset(LARGE)
    monkeypatch.setitem(PRESETS, LARGE, small)
    words = ["finetune", "--plan", "--preset", LARGE, "--noise-multiplier", "1", "--json"]
    assert main([*words, "--records", "82783", "--steps", "100", "--micro-batch", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["records"], told["steps"], told["delta"]) == (82783, 100, 0.1 / 82783)
    assert (told["text_encoder"], told["upsampler"]) == (small.text_encoder, small.upsampler)
    assert told["sampling_rate"] == 4096 / 82783
    assert 0 < told["epsilon"]["pld"] < told["epsilon"]["rdp"]
    assert told["parameters"] == parameters(WaveletGPT(small.model))
    assert told["hours"] == pytest.approx(100 * told["seconds_per_step"] / 3600)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--records", "9"), "a run counts its own"),
        (("--preset", LARGE), "no weights"),
        (("--plan", "--preset", LARGE, "--records", "-1"), "records=-1"),
        (("--plan", "--preset", "coco", "--records", "90"), "preset='coco' in"),
        (("--plan", "--records", "900000", "--delta", "1e-5"), "delta"),
    ],
)
def test_a_preset_changes_nothing_that_is_counted(
    capsys, root, monkeypatch, tmp_path, words, message
) -> None:
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    monkeypatch.setitem(PRESETS, LARGE, small_preset(LARGE))
    folders = ("--run-folder", str(tmp_path / "run"), "--out", str(tmp_path / "out"))
    assert main(["finetune", "--epsilon", "3", *words, *folders]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_checkpointing_changes_memory_and_nothing_else(make_model, make_inputs) -> None:
    inputs, found = make_inputs(6), []
    for checkpointing in (False, True):
        model, kept = make_model(), []
        model.checkpointing = checkpointing
        private = copy.deepcopy(model)
        with saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            loss = inputs.losses(model).sum()
        forward = sum(kept)
        loss.backward()
        clipped = ClippedSums(private, max_grad_norm=0.1)
        added = clipped.add(lambda private=private: inputs.losses(private))
        gradients = [parameter.grad for parameter in model.parameters()]
        found.append((forward, (gradients, clipped.sums, added.norms_B)))
    (whole, plain), (less, spared) = found
    assert less < 0.5 * whole
    torch.testing.assert_close(spared, plain)


@pytest.mark.slow
def test_a_compiled_pretraining_is_the_same(make_model, make_examples, tmp_path) -> None:
    settings = Pretraining(steps=2, batch=4, precision="float32", report_every=1)
    losses = {}
    for compiled in (False, True):
        run = pretrain(
            make_model(), make_examples(), settings, tmp_path / str(compiled), compiled=compiled
        )
        losses[compiled] = [report.loss for report in run]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(capsys, root, monkeypatch) -> None:
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    assert Ranks.from_environment().device.type == Ranks.from_environment("cpu").device.type
    words = ["finetune", "--plan", "--records", "90", "--epsilon", "1", "--device", "cuda"]
    assert main(words) == 2
    assert "Expected device='cuda' to be here" in capsys.readouterr().err
