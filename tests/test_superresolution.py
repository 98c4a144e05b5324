"""The super-resolution model: where it begins, that it learns, and the upsampler around it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dpwg.config import SuperResolutionConfig, TokenizerConfig
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.training.optimizer import finished
from dpwg.training.upsampler import (
    SuperResolutionTraining,
    _disturbed,
    _nearest,
    train_superresolution,
)
from dpwg.upsampling.superresolution import (
    SuperResolution,
    band_error,
    load_superresolution,
    save_superresolution,
)
from dpwg.upsampling.upsamplers import WaveletUpsampler

TINY = SuperResolutionConfig(
    coarse_size=8, levels=2, patch=4, width=16, heads=2, blocks=1, channels=8, residuals=1
)


def tokenizer(codes: int) -> SpectralTokenizer:
    torch.manual_seed(0)
    sizes = {"coarse_size": 8, "levels": 1, "grid": 2, "split": 2, "codebook_sizes": (codes, codes)}
    return SpectralTokenizer(TokenizerConfig(**sizes, width=16, heads=2))


def model(seed: int = 0) -> SuperResolution:
    torch.manual_seed(seed)
    return SuperResolution(TINY)


def discs(count: int) -> torch.Tensor:
    """Images of 32x32 with one bright disc each, uint8."""
    place_N2 = 8 + 16 * torch.rand(count, 2, generator=torch.Generator().manual_seed(1))
    axis = torch.arange(32.0)
    y, x = axis[:, None] - place_N2[:, 0, None, None], axis - place_N2[:, 1, None, None]
    return (255 * (x**2 + y**2 < 36)).to(torch.uint8)[:, None].expand(-1, 3, -1, -1).contiguous()


def test_it_begins_with_repeated_pixels_and_sees_distant_ones():
    image_BCHW, own = torch.rand(2, 3, 8, 8), model()
    repeated = image_BCHW.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(own(image_BCHW), repeated)
    torch.nn.init.normal_(own.coefficients.weight)
    changed = image_BCHW.clone()
    changed[..., 7, 7] += 1
    assert (own(changed) - own(image_BCHW))[..., :4, :4].abs().max() > 1e-5


def test_a_coefficient_moves_its_own_pixels_alone():
    own = model()
    coefficients_BKhw = torch.zeros(1, 48, 8, 8)
    coefficients_BKhw[0, :, 2, 3] = torch.randn(48)
    moved = own._synthesize(torch.zeros(1, 3, 8, 8), coefficients_BKhw).abs().sum((0, 1)) > 0
    assert moved[8:12, 12:16].all()
    assert moved.sum() == 16


def test_the_error_counts_pixels_and_details():
    image_BCHW = torch.rand(1, 3, 16, 16)
    assert band_error(image_BCHW, image_BCHW, 2) == 0
    brighter = band_error(image_BCHW + 0.1, image_BCHW, 2)
    assert brighter.item() == pytest.approx(0.1, rel=1e-4)  # no detail differs
    assert (
        band_error(image_BCHW.flip(-1), image_BCHW, 2)
        > (image_BCHW.flip(-1) - image_BCHW).abs().mean()
    )


def test_disturbed_codes_are_near_and_the_coarsest_stays():
    settings = SuperResolutionTraining(disturbed=1.0, neighbours=3)
    vectors_KD = torch.randn(20, 4)
    tables = [_nearest(vectors_KD, 3)] * 2
    assert (tables[0] != torch.arange(20)[:, None]).all()
    codes = [torch.randint(20, (64, 4, 2)), torch.randint(20, (64, 4, 2))]
    coarse, fine = _disturbed(codes, tables, settings, torch.Generator().manual_seed(0))
    assert torch.equal(coarse, codes[0])
    moved = fine != codes[1]
    assert 0.3 < moved.float().mean() < 0.7  # half of the codes, on average
    assert (tables[1][codes[1][moved]] == fine[moved][:, None]).any(1).all()


def test_training_beats_repeated_pixels(tmp_path):
    codes, images_NCHW = tokenizer(32), discs(200)
    target = images_NCHW.float() / 255
    coarse = torch.nn.functional.avg_pool2d(target, 4)
    codes.initialise_from(coarse)
    own = model()
    settings = SuperResolutionTraining(
        steps=150, batch=8, warmup=5, learning_rate=2e-2, disturbed=0.0, ema_decay=0.9,
        report_every=50,
    )  # fmt: skip
    reports = list(train_superresolution(own, codes, images_NCHW, settings))
    assert [report.step for report in reports] == [50, 100, 150]
    decoded = codes.decode(codes.encode(coarse[:50]))
    repeated = decoded.repeat_interleave(4, 2).repeat_interleave(4, 3)
    with torch.no_grad():
        errors = [band_error(picture, target[:50], 2) for picture in (own(decoded), repeated)]
    assert errors[0] < 0.97 * errors[1]
    save_superresolution(tmp_path / "upsampler", own)
    read = load_superresolution(tmp_path / "upsampler")
    torch.testing.assert_close(read(decoded), own(decoded).detach(), atol=0.02, rtol=0)


def test_a_critic_asks_for_the_texture_that_pixels_cannot_foresee():
    """Stripes whose phase no coarse image tells: their mean is grey, photographs are not."""
    codes = tokenizer(32)
    phase_N = torch.rand(100, generator=torch.Generator().manual_seed(0)) * 6.28
    wave_NW = 0.5 + 0.4 * torch.sin(torch.arange(32) * 1.57 + phase_N[:, None])
    images_NCHW = (255 * wave_NW[:, None, None].expand(100, 3, 32, 32)).byte()
    target = images_NCHW.float() / 255
    codes.initialise_from(torch.nn.functional.avg_pool2d(target, 4))
    settings = SuperResolutionTraining(
        steps=120, batch=8, warmup=5, learning_rate=1e-2, disturbed=0.0, ema_decay=0.9, alone=0.1
    )
    contrast = {}
    for weight in (0.0, 0.3):
        own = model()
        finished(train_superresolution(own, codes, images_NCHW, replace(settings, critic=weight)))
        with torch.no_grad():
            drawn = own(codes.decode(codes.encode(torch.nn.functional.avg_pool2d(target, 4))))
        contrast[weight] = drawn.std(-1).mean() / target.std(-1).mean()
    assert contrast[0.3] > 2 * contrast[0.0], contrast


def test_training_goes_on_from_its_last_saved_step(tmp_path):
    settings = SuperResolutionTraining(
        steps=5, batch=2, warmup=1, report_every=1, save_every=2, alone=0.2, critic=0.1
    )

    def run(own, settings=settings):
        return train_superresolution(own, tokenizer(4), discs(20), settings, folder=tmp_path)

    begun = run(model())
    assert [next(begun).step for _ in range(3)] == [1, 2, 3]  # the second is saved
    begun.close()
    again, finished = model(), model()
    assert [report.step for report in run(again)] == [3, 4, 5]
    assert not torch.equal(again.coefficients.weight, model().coefficients.weight)
    assert not list(run(finished))
    assert torch.equal(again.coefficients.weight, finished.coefficients.weight)
    with pytest.raises(ValueError, match="settings"):
        list(run(model(), replace(settings, batch=4)))


def test_the_upsampler_gives_the_same_picture_in_any_batch(tmp_path):
    own = model()
    torch.nn.init.normal_(own.coefficients.weight)
    save_superresolution(tmp_path, own)
    upsample = WaveletUpsampler(tmp_path)
    image_BCHW = torch.rand(3, 3, 8, 8)
    large_BCHW = upsample(image_BCHW)
    assert large_BCHW.shape == (3, 3, 32, 32)
    assert upsample.scale == 4
    assert 0 <= large_BCHW.min() <= large_BCHW.max() <= 1
    assert torch.equal(upsample(image_BCHW[1:2]), large_BCHW[1:2])
    with pytest.raises(ValueError, match=r"Expected images of 8x8, found \(16, 16\)"):
        upsample(torch.rand(1, 3, 16, 16))
    with pytest.raises(FileNotFoundError, match="python -m dpwg upsampler"):
        WaveletUpsampler(tmp_path / "missing")(image_BCHW)


@pytest.mark.parametrize("change", [{"levels": 0}, {"coarse_size": 30}, {"width": 18, "heads": 4}])
def test_impossible_sizes_are_refused(change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"Expected {name}={change[name]}"):
        SuperResolutionConfig(**change)
