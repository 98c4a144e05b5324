"""The Haar pyramid against PyWavelets, a hand-worked example, and its own inverse."""

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpwg.method.wavelet import coarse_image, haar_pyramid, haar_step, inverse_haar_pyramid


@settings(max_examples=25, deadline=None)
@given(
    levels=st.integers(1, 4),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_agrees_with_pywavelets_and_inverts(levels, height, width, seed):
    shape = (2, 3, height * 2**levels, width * 2**levels)
    image = torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))
    bands = haar_pyramid(image, levels)
    reference = pywt.wavedec2(image.numpy(), "haar", level=levels)
    np.testing.assert_allclose(bands[0].numpy(), reference[0], atol=1e-6 * 2**levels)
    for details, expected in zip(bands[1:], reference[1:], strict=True):
        np.testing.assert_allclose(details.numpy(), np.stack(expected, axis=1), atol=2e-6)
    np.testing.assert_allclose(inverse_haar_pyramid(bands).numpy(), image.numpy(), atol=2e-6)
    reconstruction = pywt.waverec2(
        [bands[0].numpy(), *[tuple(d.numpy().swapaxes(0, 1)) for d in bands[1:]]], "haar"
    )
    np.testing.assert_allclose(reconstruction, image.numpy(), atol=2e-6)


def test_a_worked_example():
    image = torch.tensor([[1.0, 3, 5, 7], [1, 3, 5, 7], [2, 2, 0, 0], [4, 4, 0, 8]])[None, None]
    approximation, details = haar_step(image)
    assert approximation[0, 0].tolist() == [[4, 12], [6, 4]]
    assert details[0, 0, 0].tolist() == [[0, 0], [-2, -4]]  # rows: top minus bottom
    assert details[0, 1, 0].tolist() == [[-2, -2], [0, -4]]  # columns: left minus right
    assert details[0, 2, 0].tolist() == [[0, 0], [0, 4]]  # diagonals


def test_parseval_and_gradients():
    image = torch.randn(2, 3, 16, 8, dtype=torch.float64, requires_grad=True)
    energy = sum(band.square().sum() for band in haar_pyramid(image, 3))
    assert energy.item() == pytest.approx(image.square().sum().item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(energy, image)
    torch.testing.assert_close(gradient, 2 * image)


def test_coarse_image_is_the_block_mean():
    image = torch.rand(1, 3, 128, 128)
    mean = torch.nn.functional.avg_pool2d(image, 4)
    torch.testing.assert_close(coarse_image(image, 2), mean, atol=1e-6, rtol=0)


def test_odd_sides_are_refused_by_value():
    with pytest.raises(ValueError, match="6x5"):
        haar_pyramid(torch.zeros(1, 1, 6, 5), 1)
