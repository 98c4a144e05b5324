"""The tokenizer that codes what the coarser image does not tell: causality, and what it gains."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import shaken
from torch import Tensor
from torch.nn import functional as F

from dpwg.config import TokenizerConfig
from dpwg.method.families import new_tokenizer
from dpwg.method.predictive import PredictiveTokenizer
from dpwg.method.wavelet import haar_pyramid, inverse_haar_pyramid
from dpwg.release.shared import load_tokenizer, save_tokenizer
from dpwg.training.tokenizer import TokenizerTraining, train_tokenizer

CONFIG = TokenizerConfig(codebook_sizes=(8, 12, 16), channels=8, residuals=1)


@pytest.fixture
def tokenizer(images: Tensor) -> PredictiveTokenizer:
    """One whose convolutions do something."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer(CONFIG)
    assert isinstance(tokenizer, PredictiveTokenizer)
    tokenizer.initialise_from(images, rounds=2)
    return shaken(tokenizer, 0).eval().requires_grad_(False)


def test_untrained_it_is_plain_k_means(images: Tensor) -> None:
    torch.manual_seed(0)
    tokenizer = new_tokenizer(CONFIG)
    tokenizer.initialise_from(images)
    patches = tokenizer.patches(images)
    assert all(patch.std().item() == pytest.approx(1) for patch in patches)
    codes = tokenizer.encode(images)
    vectors = [book.vectors_KD[index] for book, index in zip(tokenizer.books(), codes, strict=True)]
    torch.testing.assert_close(tokenizer.decode(codes), tokenizer.image(vectors).clamp(0, 1))


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_codes_decode_to_what_training_saw(tokenizer, images, scales: int) -> None:
    result = tokenizer(tokenizer.patches(images))
    codes = tokenizer.encode(images)
    assert all(torch.equal(a, b) for a, b in zip(codes, result.indices, strict=True))
    seen = tokenizer.image(result.decoded[:scales]).clamp(0, 1)
    torch.testing.assert_close(tokenizer.decode(codes[:scales]), seen, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1, 2])
def test_nothing_finer_enters_a_scale(tokenizer, images, scale: int) -> None:
    codes = tokenizer.encode(images)
    changed = [index.clone() for index in codes]
    changed[scale] = (changed[scale] + 1) % CONFIG.codebook_sizes[scale]
    assert torch.equal(tokenizer.decode(changed[:scale]), tokenizer.decode(codes[:scale]))
    assert not torch.equal(tokenizer.decode(changed), tokenizer.decode(codes))
    bands = haar_pyramid(images - 0.5, 2)
    bands[scale] = bands[scale].flip(0) + 0.1
    found = tokenizer.encode(inverse_haar_pyramid(bands) + 0.5)
    same = [(a == b).float().mean().item() for a, b in zip(codes, found, strict=True)]
    assert all(share > 0.999 for share in same[:scale])  # the inverse rounds: ties may fall
    assert same[scale] < 0.9


def test_what_is_foreseen_need_not_be_coded(images: Tensor) -> None:
    """Smooth images: the convolutions foresee a good part of the details, which a plain tokenizer
    of as many codes has to spell out.
    """
    pixels = F.interpolate(F.interpolate(images, size=16, mode="area"), size=32, mode="bicubic")
    pixels_NCHW = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    target = pixels_NCHW.float() / 255
    torch.manual_seed(0)
    plain = new_tokenizer(CONFIG)
    plain.initialise_from(target)
    tokenizer = copy.deepcopy(plain)
    settings = TokenizerTraining(
        steps=40, batch=16, warmup=5, foresee_steps=60, learning_rate=3e-3, ema_decay=0.8,
        report_every=20, revive_every=10,
    )  # fmt: skip
    reports = train_tokenizer(tokenizer, pixels_NCHW, settings)
    assert [report.step for report in reports] == [20, 40]
    plainly, own = (
        (t.decode(t.encode(target)) - target).square().mean() for t in (plain, tokenizer)
    )
    assert own < 0.8 * plainly
    patches = tokenizer.patches(target)
    for left, whole in zip(tokenizer(patches).latents[1:], patches[1:], strict=True):
        assert left.square().mean() < 0.8 * whole.square().mean()


def test_it_is_saved_and_read_back(tokenizer, images, tmp_path: Path) -> None:
    read = [tokenizer]
    for name in ("tokenizer", "again"):
        save_tokenizer(tmp_path / name, read[-1])
        read.append(load_tokenizer(tmp_path / name))
    assert isinstance(read[1], PredictiveTokenizer)
    codes = [again.encode(images) for again in read[1:]]
    assert all(torch.equal(a, b) for a, b in zip(*codes, strict=True))
    assert torch.equal(read[1].decode(codes[0]), read[2].decode(codes[0]))
