"""Patches, scale-causality, codebooks and a short training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from dpwg.config import TokenizerConfig
from dpwg.method.codebook import Codebook
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.method.wavelet import coarse_image, haar_pyramid, inverse_haar_pyramid
from dpwg.training.tokenizer import TokenizerTraining, train_tokenizer

SHAPES = [(48, 16, 4, 3), (48, 16, 4, 9), (48, 16, 4, 36)]


@pytest.fixture
def tokenizer(make_tokenizer, images) -> SpectralTokenizer:
    tokenizer = make_tokenizer()
    tokenizer.initialise_from(images, rounds=2)
    return tokenizer


def test_patches_and_image_are_inverse(tokenizer, images) -> None:
    patches = tokenizer.patches(images)
    assert [tuple(patch.shape) for patch in patches] == SHAPES
    assert all(patch.std().item() == pytest.approx(1) for patch in patches)
    torch.testing.assert_close(tokenizer.image(patches), images, atol=1e-6, rtol=0)
    for scales in (1, 2, 3):
        coarse = coarse_image(images, 3 - scales)
        torch.testing.assert_close(tokenizer.image(patches[:scales]), coarse, atol=1e-6, rtol=0)
    changed = images.clone()
    changed[:, :, 4:8, 12:16] = 0.5  # row 1, column 3 of 8 x 8 cells: position 1, code 3
    for before, after in zip(patches, tokenizer.patches(changed), strict=True):
        moved = (before - after).abs().amax((0, 3)) > 1e-6
        assert moved.nonzero().tolist() == [[1, 3]]


def vectors(tokenizer: SpectralTokenizer, codes: list[Tensor]) -> list[Tensor]:
    return [c.vectors_KD[index] for c, index in zip(tokenizer.codebooks, codes, strict=False)]


@pytest.mark.parametrize("scale", [1, 2])
def test_nothing_finer_enters_a_scale(tokenizer, images, scale: int) -> None:
    codes = tokenizer.encode(images)
    for index, size in zip(codes, tokenizer.config.codebook_sizes, strict=True):
        assert (index.shape, index.dtype) == ((48, 16, 4), torch.int64)
        assert 0 <= index.min() <= index.max() < size
    changed = [index.clone() for index in codes]
    changed[scale] = (changed[scale] + 1) % tokenizer.config.codebook_sizes[scale]
    before = tokenizer.coefficients(vectors(tokenizer, codes))
    after = tokenizer.coefficients(vectors(tokenizer, changed))
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [
        s < scale for s in range(3)
    ]
    alone = tokenizer.coefficients(vectors(tokenizer, codes[:scale]))
    for a, b in zip(before[:scale], alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    coarse = tokenizer.decode(codes[:scale])
    assert coarse.shape == (48, 3, 4 * 2**scale, 4 * 2**scale)
    assert 0 <= coarse.min() <= coarse.max() <= 1
    bands = haar_pyramid(images, 2)
    bands[scale] = bands[scale].flip(0) + 0.1
    found = tokenizer.encode(inverse_haar_pyramid(bands))
    same = [(a == b).float().mean().item() for a, b in zip(codes, found, strict=True)]
    assert all(share > 0.999 for share in same[:scale])  # the inverse rounds: ties may fall
    assert same[scale] < 0.9


def test_finer_patches_leave_coarser_latents_exactly_unchanged(tokenizer, images) -> None:
    patches = tokenizer.patches(images)
    before = tokenizer.latents(patches)
    for scale in range(3):
        changed = [patch.clone() for patch in patches]
        changed[scale] = changed[scale].flip(0)
        after = tokenizer.latents(changed)
        equal = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert equal == [s < scale for s in range(3)]


def test_an_untrained_tokenizer_is_plain_k_means(images) -> None:
    torch.manual_seed(0)
    config = TokenizerConfig(codebook_sizes=(16, 16, 16), width=16, heads=2)
    tokenizer = SpectralTokenizer(config)
    tokenizer.initialise_from(images)
    patches = tokenizer.patches(images)
    assert all(torch.equal(a, b) for a, b in zip(tokenizer.latents(patches), patches, strict=True))
    codes = tokenizer.encode(images)
    image = tokenizer.image(vectors(tokenizer, codes)).clamp(0, 1)
    torch.testing.assert_close(tokenizer.decode(codes), image)


def test_a_short_training_lowers_the_error_of_the_k_means_start(images) -> None:
    torch.manual_seed(0)
    sizes = {"encoder_blocks": 1, "decoder_blocks": 1, "codebook_sizes": (16, 16, 16)}
    tokenizer = SpectralTokenizer(TokenizerConfig(width=32, heads=2, **sizes))
    pixels = (images * 255).round().to(torch.uint8)
    target = pixels.float() / 255
    start = copy.deepcopy(tokenizer)
    start.initialise_from(target)
    settings = TokenizerTraining(
        steps=60, batch=16, warmup=5, report_every=25, revive_every=10, ema_decay=0.8
    )
    reports = list(train_tokenizer(tokenizer, pixels, settings))
    assert [(report.step, report.examples) for report in reports] == [
        (25, 400), (50, 800), (60, 960),
    ]  # fmt: skip
    errors = [
        (one.decode(one.encode(target)) - target).square().mean() for one in (start, tokenizer)
    ]
    assert errors[1] < 0.95 * errors[0]
    assert reports[-1].loss < reports[0].loss


def test_k_means_uses_all_codes_and_finds_separated_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    centres_KD = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0], [20.0, 20.0]])
    x_ND = centres_KD.repeat(60, 1) + 0.1 * torch.randn(300, 2, generator=generator)
    codebook, wide = Codebook(5, 2), Codebook(32, 3)
    codebook.fit(x_ND, rounds=20, generator=generator)
    assert len(codebook.indices(x_ND).unique()) == 5
    assert torch.cdist(x_ND, codebook.vectors_KD).amin(1).square().mean() < 20
    spread_ND = torch.randn(2000, 3, generator=generator)
    wide.fit(spread_ND, rounds=10, generator=generator)
    assert torch.bincount(wide.indices(spread_ND), minlength=32).min() > 0


def test_a_codebook_takes_the_nearest_vector_and_passes_gradients_through() -> None:
    torch.manual_seed(0)
    codebook, x_D = Codebook(7, 3), torch.randn(4, 5, 3, requires_grad=True)
    quantized, indices = codebook(x_D)
    assert torch.equal(indices, torch.cdist(x_D, codebook.vectors_KD[None]).argmin(-1))
    torch.testing.assert_close(quantized, codebook.vectors_KD[indices])
    pull = torch.randn_like(quantized)
    (quantized * pull).sum().backward()
    assert torch.equal(x_D.grad, pull)
    expected = torch.zeros(7, 3).index_add_(0, indices.flatten(), pull.flatten(0, 1))
    torch.testing.assert_close(codebook.vectors_KD.grad, expected)


def test_dead_codes_move_to_samples_and_the_others_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    codebook, x_ND = Codebook(6, 2), torch.randn(50, 2, generator=generator)
    before = codebook.vectors_KD.detach().clone()
    dead = torch.tensor([False, True, False, False, True, False])
    codebook.revive(dead, x_ND, generator)
    assert torch.equal(codebook.vectors_KD[~dead], before[~dead])
    for vector_D in codebook.vectors_KD[dead]:
        assert (x_ND == vector_D).all(1).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_sizes": (8, 8)}, "Expected 3 codebook_sizes, found 2"),
        ({"coarse_size": 24}, "coarse_size=24 to be a multiple"),
        ({"coarse_size": 16}, "coarse_size=16 to be a multiple"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**change)


@pytest.mark.parametrize(
    ("levels", "grid", "split", "size"),
    [(2, 4, 2, 32), (1, 2, 2, 16), (2, 4, 1, 16), (3, 2, 2, 32)],
)
def test_other_layouts_invert_too(levels: int, grid: int, split: int, size: int) -> None:
    sizes = {"coarse_size": size, "codebook_sizes": (4,) * (levels + 1), "width": 8, "heads": 2}
    config = TokenizerConfig(levels=levels, grid=grid, split=split, **sizes)
    tokenizer = SpectralTokenizer(config)
    image = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    patches = tokenizer.patches(image)
    assert [patch.shape[3] for patch in patches] == list(config.code_widths)
    assert sum(patch[0].numel() for patch in patches) == 3 * size**2
    torch.testing.assert_close(tokenizer.image(patches), image, atol=1e-6, rtol=0)
    assert tokenizer.decode(tokenizer.encode(image)).shape == image.shape
