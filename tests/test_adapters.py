"""Adapters: the trained pairs alone, merged into their public base, and nothing else taken."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpwg.cli import main
from dpwg.method.encoders import default_encoder
from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.method.transformer import WaveletGPT
from dpwg.modules import SHIPPED, weights_sha256
from dpwg.privacy.accounting import Ledger, PrivacyPlan
from dpwg.privacy.card import PrivacyCard
from dpwg.release.adapters import corrections, merge_adapter, merged_weight
from dpwg.release.folder import (
    Release,
    base_folder,
    describe,
    load_public,
    load_release,
    save_release,
    save_tokenizer,
)
from dpwg.release.space import write_space
from dpwg.training.examples import Examples
from dpwg.training.private import Finetuning, PrivateTraining

PLAN = PrivacyPlan(
    records=12, batch_size=6, steps=2, delta=1e-3, noise_multiplier=1.0, max_grad_norm=0.1
)
SETTINGS = Finetuning(precision="float32", micro_batch=6, lora_rank=2)


def a_card(ledger: Ledger, records: int = PLAN.records) -> PrivacyCard:
    return PrivacyCard.from_ledger(
        ledger,
        delta=PLAN.delta,
        dataset="made up",
        records=records,
        max_grad_norm=PLAN.max_grad_norm,
        public_inputs=[],
    )


def an_example_set(model: WaveletGPT) -> Examples:
    """Twelve random records that fit the model."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    shape = (PLAN.records, config.text_tokens, config.text_width)
    texts = {
        "states": torch.randn(shape, generator=generator),
        "mask": torch.ones(shape[:2], dtype=torch.bool),
        "count": torch.ones(PLAN.records, dtype=torch.int64),
        "empty_states": torch.ones(shape[1:]),
        "empty_mask": torch.ones(shape[1], dtype=torch.bool),
    }
    of_scale = (PLAN.records, config.positions, config.codes)
    codes = {
        f"codes_{scale}": torch.randint(size, of_scale, generator=generator).to(torch.int16)
        for scale, size in enumerate(config.codebook_sizes)
    }
    return Examples(texts, codes)


def train(base: Release, settings: Finetuning = SETTINGS) -> Release:
    """Two private steps from a base."""
    torch.manual_seed(0)
    model = base.model.requires_grad_(True)
    generator = np.random.Generator(np.random.Philox(0))
    run = PrivateTraining(model, an_example_set(model), PLAN, settings, generator=generator)
    assert run.adapter is None
    list(run.run())
    return dataclasses.replace(
        base, model=model, card=a_card(run.ledger), adapter=run.adapter, weights_sha256=None
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_tokenizer) -> tuple[Path, Release]:
    """Checkpoints with a public model, an adapter to it, and the same saved whole; the trained
    release as it was in memory.
    """
    root = tmp_path_factory.mktemp("adapters") / "checkpoints"
    tokenizer = make_tokenizer()
    save_tokenizer(root / "tokenizer", tokenizer)
    torch.manual_seed(1)
    model = WaveletGPT.for_tokenizer(tokenizer, width=32, blocks=2, heads=2, code_hidden=32)
    shared = {"tokenizer_folder": root / "tokenizer"}
    public = Release(
        model=model,
        tokenizer=tokenizer,
        card=a_card(Ledger()),
        text_encoder=default_encoder().id,
        upsampler="photo",
    )
    save_release(root / "faces" / "public", public, **shared)
    trained = train(load_public(root / "faces" / "public"))
    base = root / "faces" / "public"
    save_release(root / "faces" / "eps-1", trained, **shared, base_folder=base)
    save_release(root / "faces" / "whole", trained, **shared)
    return root, trained


@pytest.fixture
def root(made, tmp_path, monkeypatch) -> Path:
    """A copy of them that a test can spoil."""
    shutil.copytree(made[0], tmp_path / "checkpoints")
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(tmp_path / "checkpoints"))
    return tmp_path / "checkpoints"


def bits(model: WaveletGPT) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace_adapter(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Put another adapter into a release, and let the release name it."""
    save_file(tensors, folder / "adapter.safetensors")
    edit(folder, adapter_sha256=weights_sha256(folder))


def test_an_adapter_loads_as_the_model_that_was_trained(made, root) -> None:
    trained, adapted = made[1], load_release("faces/eps-1")
    for name, tensor in adapted.model.state_dict().items():
        own = trained.model.state_dict()[name]
        kept = own if name.startswith("codebook_") else own.bfloat16().float()
        assert torch.equal(tensor, kept), name
    before = load_release("faces/public")
    assert bits(adapted.model) == bits(load_release("faces/whole").model) != bits(before.model)
    assert not adapted.model.training
    assert not any(parameter.requires_grad for parameter in adapted.model.parameters())
    assert adapted.card == trained.card
    assert adapted.adapter is not None
    assert adapted.adapter.keys() == trained.adapter.keys()
    assert (before.upsampler, adapted.upsampler, before.adapter) == ("photo", "photo", None)
    images = [
        DPWaveletPipeline.from_pretrained(f"faces/{name}")("a b", seed=3, upsampler="bicubic").image
        for name in ("eps-1", "whole")
    ]
    assert (images[0] == images[1]).all()


def test_the_same_model_has_the_same_digest_however_it_is_kept(root) -> None:
    adapted, whole = load_release("faces/eps-1"), load_release("faces/whole")
    assert adapted.weights_sha256 == whole.weights_sha256
    assert whole.weights_sha256 == weights_sha256(root / "faces" / "whole")


def test_an_adapter_is_smaller_and_counts_the_whole_model(root) -> None:
    adapted, whole = describe("faces/eps-1"), describe("faces/whole")
    assert adapted["bytes"] < whole["bytes"] / 2
    assert adapted["parameters"] == whole["parameters"]
    files = {path.name for path in (root / "faces" / "eps-1").iterdir()}
    assert files == {"adapter.safetensors", "config.json", "privacy_card.json"}
    assert base_folder(root / "faces" / "eps-1") == (root / "faces" / "public").resolve()
    assert base_folder(root / "faces" / "whole") is None


def test_an_adapter_is_saved_again_whole_and_loads_alone(root, tmp_path) -> None:
    pipe = DPWaveletPipeline.from_pretrained("faces/eps-1")
    pipe.save_pretrained(tmp_path / "alone")
    expected = bits(pipe.release.model)
    shutil.rmtree(root)
    alone = load_release(tmp_path / "alone")
    assert bits(alone.model) == expected
    assert alone.weights_sha256 == pipe.release.weights_sha256
    assert alone.card == pipe.release.card
    assert alone.adapter is None


def test_a_run_that_trains_every_parameter_has_no_adapter(root, tmp_path) -> None:
    full = train(load_public("faces/public"), dataclasses.replace(SETTINGS, lora_rank=0))
    assert full.adapter is None
    with pytest.raises(ValueError, match="found no adapter; name the base"):
        save_release(tmp_path / "out", full, base_folder=root / "faces" / "public")


def test_another_base_is_not_written_down(root, tmp_path, make_tokenizer) -> None:
    other = load_release("faces/public")
    other.model.norm.weight += 1
    save_release(tmp_path / "other", other)
    for base, told in (
        (tmp_path / "other", "found another model; name the base"),
        (root / "faces" / "whole", "to be public, found epsilon="),
    ):
        with pytest.raises(ValueError, match=told):
            save_release(tmp_path / "out", load_release("faces/eps-1"), base_folder=base)
    assert not (tmp_path / "out").exists()


def test_another_base_than_it_names_is_refused(root) -> None:
    other = load_release("faces/public")
    other.model.norm.weight += 1
    save_release(root / "faces" / "public", other, tokenizer_folder=root / "tokenizer")
    with pytest.raises(ValueError, match=r"Expected the base \w{12}\.\.\. of eps-1 in .*restore"):
        load_release("faces/eps-1")


def test_a_missing_base_is_told_where_it_belongs(root) -> None:
    shutil.rmtree(root / "faces" / "public")
    with pytest.raises(FileNotFoundError, match="base of eps-1, which is an adapter, in "):
        load_release("faces/eps-1")


def test_a_private_base_is_refused(root) -> None:
    base = load_release("faces/public")
    private = dataclasses.replace(base, card=load_release("faces/eps-1").card)
    save_release(root / "faces" / "public", private, tokenizer_folder=root / "tokenizer")
    with pytest.raises(ValueError, match="base of eps-1 to be public, found epsilon="):
        load_release("faces/eps-1")


def test_an_adapter_is_no_base(root) -> None:
    adapted = root / "faces" / "eps-1"
    shutil.copytree(adapted, root / "faces" / "eps-2")
    digest = weights_sha256(adapted)
    edit(root / "faces" / "eps-2", base="../eps-1", base_sha256=digest)
    with pytest.raises(ValueError, match="Expected the base"):
        load_release("faces/eps-2")


def test_another_adapter_than_it_names_is_refused(root) -> None:
    file = root / "faces" / "eps-1" / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="the card is not theirs"):
        load_release("faces/eps-1")


@pytest.mark.parametrize(
    "change",
    [
        lambda pair: {"blocks.9.qkv.down": pair["down"], "blocks.9.qkv.up": pair["up"]},
        lambda pair: {"blocks.0.down": pair["down"], "blocks.0.up": pair["up"]},
        lambda pair: {"down": pair["down"], "up": pair["up"]},
        lambda pair: {"blocks.0.qkv.down": pair["down"]},
        lambda pair: {"blocks.0.qkv.down": pair["down"], "blocks.0.qkv.up": pair["up"][1:]},
        lambda pair: {"blocks.0.qkv.down": pair["down"][:, 1:], "blocks.0.qkv.up": pair["up"]},
        lambda pair: {"blocks.0.qkv.down": pair["down"][:1], "blocks.0.qkv.up": pair["up"]},
        lambda pair: {"blocks.0.qkv.down": pair["down"][0], "blocks.0.qkv.up": pair["up"]},
        lambda pair: {
            "blocks.0.qkv.down": pair["down"],
            "blocks.0.qkv.up": pair["up"],
            "blocks.0.qkv.skip": torch.full((9_999,), 255, dtype=torch.uint8),
            "blocks.0.qkv.value": torch.zeros(9_999, dtype=torch.bfloat16),
        },
        lambda pair: {
            "blocks.0.qkv.down": pair["down"],
            "blocks.0.qkv.up": pair["up"],
            "blocks.0.qkv.skip": torch.zeros(3, dtype=torch.uint8),
            "blocks.0.qkv.value": torch.zeros(2, dtype=torch.bfloat16),
        },
    ],
)
def test_what_is_no_pair_of_the_model_is_refused(root, change) -> None:
    folder = root / "faces" / "eps-1"
    own = load_file(folder / "adapter.safetensors")
    pair = {part: own[f"blocks.0.qkv.{part}"] for part in ("down", "up")}
    replace_adapter(folder, {n: t.contiguous() for n, t in change(pair).items()})
    with pytest.raises(ValueError, match="to be a pair for a Linear of the model"):
        load_release("faces/eps-1")


def test_what_suits_the_pictures_is_a_name(root) -> None:
    edit(root / "faces" / "eps-1", upsampler=["photo"])
    with pytest.raises(ValueError, match=r"upsampler=\['photo'\], which is no name; it is refused"):
        load_release("faces/eps-1")


@given(st.integers(1, 2_000), st.floats(0, 1), st.integers(0, 99))
def test_corrections_restore_every_bit(entries: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(entries, 1, generator=generator)
    down_RI, up_OR = torch.randn(1, 1, generator=generator), torch.zeros(entries, 1)
    wanted_OI = weight_OI.bfloat16()
    other = torch.rand(entries, 1, generator=generator) < share
    wanted_OI[other] = -wanted_OI[other] * 0  # minus zeros among them
    model = torch.nn.ModuleDict({"it": torch.nn.Linear(1, entries)})
    model["it"].weight.data.copy_(weight_OI)
    found = corrections(merged_weight(weight_OI, down_RI, up_OR), wanted_OI)
    pair = {"down": down_RI, "up": up_OR} | found
    merge_adapter(model, {f"it.{part}": tensor for part, tensor in pair.items()})
    merged_OI = model["it"].weight.data.bfloat16()
    assert torch.equal(merged_OI.view(torch.int16), wanted_OI.view(torch.int16))


def test_finetune_beside_the_base_writes_an_adapter_unless_told_otherwise(
    root, tmp_path, image_folder, capsys
) -> None:
    words = ["finetune", "--data", image_folder, "--noise-multiplier", 5, "--delta", 1e-3]
    words += ["--batch", 4, "--steps", 1, "--micro-batch", 4, "--lora-rank", 2]
    outside, inside = tmp_path / "outside", root / "mine" / "eps-5"
    tokenizer = ("--tokenizer", root / "tokenizer")
    for number, (out, options, kept) in enumerate(
        (
            (inside, tokenizer, "adapter.safetensors"),
            (inside, (*tokenizer, "--whole"), "model.safetensors"),
            (inside, (), "model.safetensors"),
            (inside, (*tokenizer, "--lora-rank", 0), "model.safetensors"),
            (outside, tokenizer, "model.safetensors"),
        )
    ):
        own = [*words, *options, "--run-folder", tmp_path / f"run-{number}", "--out", out]
        assert main([str(word) for word in own]) == 0, capsys.readouterr().err
        assert [path.name for path in out.glob("*.safetensors")] == [kept]
        assert load_release(out).card.steps == 1


def test_a_space_takes_the_base_of_an_adapter_with_it(root, tmp_path) -> None:
    files = write_space(tmp_path / "space", ["faces/eps-1"])
    kept = {name for name in files if name.startswith("checkpoints/faces/")}
    assert "checkpoints/faces/public/model.safetensors" in kept
    assert "checkpoints/faces/eps-1/adapter.safetensors" in kept
    assert not any("whole" in name for name in kept)
    moved = load_release(tmp_path / "space" / "checkpoints" / "faces" / "eps-1")
    assert bits(moved.model) == bits(load_release("faces/eps-1").model)


def test_a_shipped_adapter_goes_by_the_digest_of_its_whole_model(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(SHIPPED))
    release = load_release("faces/eps-10")
    assert release.adapter is not None
    save_release(tmp_path / "whole", release)
    assert weights_sha256(tmp_path / "whole") == release.weights_sha256
