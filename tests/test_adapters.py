"""Adapters: the trained pairs alone, merged into their public base, and nothing else taken."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpwg.cli import main
from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.method.transformer import WaveletGPT
from dpwg.modules import SHIPPED, weights_sha256
from dpwg.privacy.accounting import PrivacyPlan
from dpwg.privacy.card import PrivacyCard
from dpwg.release.adapters import merge_adapter, merged_weight
from dpwg.release.folder import (
    Release,
    base_of,
    describe,
    load_public,
    load_release,
    save_release,
)
from dpwg.release.space import write_space
from dpwg.training.examples import Examples
from dpwg.training.private import Finetuning, PrivateTraining

PLAN = PrivacyPlan(
    records=12, batch_size=6, steps=2, delta=1e-3, noise_multiplier=1.0, max_grad_norm=0.1
)
SETTINGS = Finetuning(precision="float32", micro_batch=6, lora_rank=2)


def train(base: Release, examples: Examples, settings: Finetuning = SETTINGS) -> Release:
    """Two private steps from a base."""
    torch.manual_seed(0)
    model = base.model.requires_grad_(True)
    generator = np.random.Generator(np.random.Philox(0))
    run = PrivateTraining(model, examples, PLAN, settings, generator=generator)
    assert run.adapter is None
    list(run.run())
    card = PrivacyCard.from_ledger(
        run.ledger, delta=PLAN.delta, dataset="made up", records=PLAN.records,
        max_grad_norm=PLAN.max_grad_norm, public_inputs=[],
    )  # fmt: skip
    own = {"adapter": run.adapter, "weights_sha256": None, "base_sha256": base.weights_sha256}
    return dataclasses.replace(base, model=model, card=card, **own)


@pytest.fixture(scope="module")
def made(root, tmp_path_factory, make_examples) -> tuple[Path, Release]:
    """Checkpoints with a public model, an adapter to it, and the same saved whole; the trained
    release as it was in memory.
    """
    top = tmp_path_factory.mktemp("adapters") / "checkpoints"
    shutil.copytree(root / "tokenizer", top / "tokenizer")
    base, shared = top / "faces" / "public", {"tokenizer_folder": top / "tokenizer"}
    public = dataclasses.replace(load_public(root / "faces" / "public"), upsampler="photo")
    save_release(base, public, **shared)
    trained = train(load_public(base), make_examples(config=public.model.config))
    save_release(top / "faces" / "eps-1", trained, **shared, base_folder=base)
    save_release(top / "faces" / "whole", trained, **shared)
    return top, trained


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:
    """A copy of them that a test can spoil."""
    shutil.copytree(made[0], tmp_path / "checkpoints")
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(tmp_path / "checkpoints"))
    return tmp_path / "checkpoints"


def bits(model: WaveletGPT) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_adapter_loads_as_the_model_that_was_trained(made, place) -> None:
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


def test_an_adapter_is_smaller_and_goes_by_the_digest_of_the_whole_model(place) -> None:
    adapted, whole = load_release("faces/eps-1"), load_release("faces/whole")
    assert adapted.weights_sha256 == whole.weights_sha256
    assert whole.weights_sha256 == weights_sha256(place / "faces" / "whole")
    adapted, whole = describe("faces/eps-1"), describe("faces/whole")
    assert adapted["bytes"] < whole["bytes"] / 2
    assert adapted["parameters"] == whole["parameters"]
    files = {path.name for path in (place / "faces" / "eps-1").iterdir()}
    assert files == {"adapter.safetensors", "config.json", "privacy_card.json"}
    assert [base_of(f"faces/{name}") for name in ("eps-1", "whole", "public")] == [
        *("faces/public", "faces/public", None)
    ]


def test_an_adapter_is_saved_again_whole_and_loads_alone(place, tmp_path) -> None:
    pipe = DPWaveletPipeline.from_pretrained("faces/eps-1")
    pipe.save_pretrained(tmp_path / "alone")
    expected = bits(pipe.release.model)
    shutil.rmtree(place)
    alone = load_release(tmp_path / "alone")
    assert bits(alone.model) == expected
    assert alone.weights_sha256 == pipe.release.weights_sha256
    assert alone.card == pipe.release.card
    assert alone.adapter is None


def test_without_its_own_base_no_adapter_is_written(place, tmp_path, make_examples) -> None:
    public = load_public("faces/public")
    examples = make_examples(config=public.model.config)
    full = train(public, examples, dataclasses.replace(SETTINGS, lora_rank=0))
    assert full.adapter is None
    other, adapted = load_release("faces/public"), load_release("faces/eps-1")
    other.model.norm.weight += 1
    save_release(tmp_path / "other", other)
    for release, base, told in (
        (full, place / "faces" / "public", "found no adapter"),
        (adapted, tmp_path / "other", "found another model"),
        (adapted, place / "faces" / "whole", "to be public, found epsilon="),
    ):
        with pytest.raises(ValueError, match=told):
            save_release(tmp_path / "out", release, base_folder=base)
    assert not (tmp_path / "out").exists()


def name_base(place: Path, base: str) -> None:
    digest = weights_sha256(place / "faces" / base)
    edit(place / "faces" / "eps-1", base=f"../{base}", base_sha256=digest)


def another_base(place: Path) -> None:
    save_release(place / "faces" / "public", load_release("faces/whole"))


def an_adapter_as_base(place: Path) -> None:
    shutil.copytree(place / "faces" / "eps-1", place / "faces" / "eps-2")
    name_base(place, "eps-2")


def other_bytes(place: Path) -> None:
    path = place / "faces" / "eps-1" / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (another_base, "base weights"),
        (lambda place: shutil.rmtree(place / "faces" / "public"), "get the whole model"),
        (lambda place: name_base(place, "whole"), "to be public"),
        (an_adapter_as_base, "base weights"),
        (other_bytes, "Expected the weights"),
    ],
)
def test_another_base_or_adapter_than_it_names_is_refused(place, damage, words) -> None:
    damage(place)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        load_release("faces/eps-1")
    with pytest.raises((ValueError, FileNotFoundError)):
        write_space(place.parent / "space", ["faces/eps-1"])


LAYER = "blocks.0.qkv"
NO_PAIRS = {
    "no layer": lambda down, up: {"blocks.9.qkv.down": down, "blocks.9.qkv.up": up},
    "a norm": lambda down, up: {"norm.down": down, "norm.up": up},
    "half a pair": lambda down, up: {f"{LAYER}.down": down},
    "turned": lambda down, up: {f"{LAYER}.down": up, f"{LAYER}.up": down},
    "too few ranks": lambda down, up: {f"{LAYER}.down": down[:1], f"{LAYER}.up": up},
    "another pair": lambda down, up: {f"{LAYER}.down": down * 2, f"{LAYER}.up": up},
    "outside": lambda down, up: corrected(down, up, torch.full((9_999,), 255), 9_999),
    "fewer values": lambda down, up: corrected(down, up, torch.zeros(3), 2),
}


def corrected(down: Tensor, up: Tensor, skip: Tensor, values: int) -> dict[str, Tensor]:
    pair = {f"{LAYER}.down": down, f"{LAYER}.up": up, f"{LAYER}.skip": skip.to(torch.uint8)}
    return pair | {f"{LAYER}.value": torch.zeros(values, dtype=torch.bfloat16)}


@pytest.mark.parametrize("change", NO_PAIRS.values(), ids=NO_PAIRS)
def test_what_is_no_pair_of_the_model_or_another_is_refused(place, change) -> None:
    folder = place / "faces" / "eps-1"
    own = load_file(folder / "adapter.safetensors")
    changed = own | change(own.pop(f"{LAYER}.down"), own.pop(f"{LAYER}.up"))
    save_file({n: t.contiguous() for n, t in changed.items()}, folder / "adapter.safetensors")
    edit(folder, adapter_sha256=weights_sha256(folder))
    with pytest.raises(ValueError, match=r"merged weights|to be a release of dpwg"):
        load_release("faces/eps-1")


def test_corrections_restore_every_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.ModuleDict({"it": torch.nn.Linear(1, 600)})
    weight_OI = torch.randn(600, 1, generator=generator)
    model["it"].weight.data.copy_(weight_OI)
    pair = {"it.down": torch.ones(1, 1), "it.up": torch.zeros(600, 1)}
    wanted_OI = merged_weight(weight_OI, *pair.values())
    places = torch.tensor([0, 1, 255, 511, 599])
    wanted_OI[places] = -0.0
    pair["it.skip"] = torch.tensor([0, 0, 253, 255, 87], dtype=torch.uint8)
    merge_adapter(model, pair | {"it.value": wanted_OI.flatten()[places]})
    found_OI = model["it"].weight.data.bfloat16()
    assert torch.equal(found_OI.view(torch.int16), wanted_OI.view(torch.int16))


def test_finetune_beside_the_base_writes_an_adapter_unless_told_otherwise(
    place, tmp_path, image_folder, capsys
) -> None:
    words = ["finetune", "--data", image_folder, "--noise-multiplier", 5, "--delta", 1e-3]
    words += ["--batch", 4, "--steps", 1, "--micro-batch", 4, "--lora-rank", 2]
    outside, inside = tmp_path / "outside", place / "mine" / "eps-5"
    tokenizer = ("--tokenizer", place / "tokenizer")
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
        assert load_release(out).base_sha256 == load_release("faces/public").weights_sha256


def test_a_space_takes_the_base_of_an_adapter_with_it(place, tmp_path) -> None:
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
