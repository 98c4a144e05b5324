"""Bands against PyWavelets, Parseval, a sinusoid of known frequency, and the figure's frame."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import pywt
import torch

from dpwg.measure.spectra import (
    band_names,
    bands_figure,
    decompose,
    energy_shares,
    first_bands,
    radial_spectrum,
    reconstruct,
    spectra_figure,
)
from dpwg.method.wavelet import haar_pyramid


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(3).random((32, 48, 3))


def test_names_run_coarse_to_fine() -> None:
    assert band_names(1) == ("LL1", "cH1", "cV1", "cD1")
    assert band_names(3)[:5] == ("LL3", "cH3", "cV3", "cD3", "cH2")


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_bands_are_those_of_pywavelets(image: np.ndarray, wavelet: str) -> None:
    bands = dict(decompose(image, wavelet=wavelet, levels=3))
    for channel in range(3):
        approximation, *details = pywt.wavedec2(
            image[..., channel], wavelet, mode="periodization", level=3
        )
        np.testing.assert_allclose(bands["LL3"][..., channel], approximation)
        for level, triple in zip((3, 2, 1), details, strict=True):
            for kind, expected in zip("HVD", triple, strict=True):
                np.testing.assert_allclose(bands[f"c{kind}{level}"][..., channel], expected)


def test_haar_bands_are_those_of_the_model(image: np.ndarray) -> None:
    pyramid = haar_pyramid(torch.from_numpy(image).permute(2, 0, 1)[None], 2)
    expected = [pyramid[0][0], *(band for details in pyramid[1:] for band in details[0])]
    for (_, band), model in zip(decompose(image, levels=2), expected, strict=True):
        np.testing.assert_allclose(band, model.permute(1, 2, 0).numpy(), atol=1e-12)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "bior2.2"])
@pytest.mark.parametrize("shape", [(32, 48, 3), (37, 50, 1)])
@pytest.mark.parametrize("levels", [1, 2])
def test_round_trip(wavelet: str, shape: tuple[int, int, int], levels: int) -> None:
    image = np.random.default_rng(5).random(shape)
    bands = decompose(image, wavelet=wavelet, levels=levels)
    assert bands[-1][1].shape == (-(-shape[0] // 2), -(-shape[1] // 2), shape[2])
    np.testing.assert_allclose(reconstruct(bands, wavelet=wavelet, shape=shape), image, atol=1e-10)


def test_fewer_bands_give_block_means(image: np.ndarray) -> None:
    coarse = reconstruct(decompose(image, levels=3)[:4], shape=(8, 12)) / 4
    means = image.reshape(8, 4, 12, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(coarse, means, atol=1e-12)


@pytest.mark.parametrize("wavelet", ["haar", "db3"])
def test_first_bands_lead_to_the_image(image: np.ndarray, wavelet: str) -> None:
    bands = decompose(image, wavelet=wavelet, levels=2)
    errors = []
    for count in range(1, len(bands) + 1):
        kept = first_bands(bands, count)
        assert [name for name, _ in kept] == list(band_names(2))
        seen = reconstruct(kept, wavelet=wavelet, shape=image.shape)
        errors.append(float(np.square(seen - image).sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(0, abs=1e-15)
    left = sum(float(np.square(band).sum()) for _, band in bands[4:])
    assert errors[3] == pytest.approx(left)  # Parseval


def test_a_sine_has_one_height_in_two_sizes() -> None:
    def wave(side: int) -> np.ndarray:
        columns = (np.arange(side) + 0.5) / side
        return np.tile(0.5 + 0.3 * np.sin(2 * np.pi * 3 * columns), (side, 1))[..., None]

    figure = spectra_figure({"small": wave(64), "large": wave(256)}, marked=64)
    small, large, line = figure.axes[0].get_lines()
    assert [item.get_label() for item in (small, large)] == ["small, 64×64", "large, 256×256"]
    for item in (small, large):
        cycles, power = item.get_data()
        assert cycles[np.argmax(power)] == pytest.approx(3)
    assert max(small.get_ydata()) == pytest.approx(max(large.get_ydata()))
    assert line.get_xdata()[0] == 32


def test_energies_sum_to_one_and_keep_parseval(image: np.ndarray) -> None:
    bands = decompose(image, levels=2)
    shares = energy_shares(bands)
    assert tuple(shares) == band_names(2)
    assert sum(shares.values()) == pytest.approx(1)
    energy = sum(float((band**2).sum()) for _, band in bands)
    assert energy == pytest.approx(float((image**2).sum()))
    assert energy_shares(decompose(np.full((8, 8, 1), 0.5), levels=3))["LL3"] == pytest.approx(1)


@pytest.mark.parametrize("cycles", [(0, 9), (20, 0), (12, 16)])
def test_a_sinusoid_peaks_at_its_frequency(cycles: tuple[int, int]) -> None:
    rows, columns = np.mgrid[:64, :64] / 64
    wave = 0.5 + 0.4 * np.sin(2 * np.pi * (cycles[0] * rows + cycles[1] * columns))
    frequency, power = radial_spectrum(np.repeat(wave[..., None], 3, axis=2))
    assert frequency.shape == power.shape == (32,)
    assert frequency[-1] == 0.5
    assert frequency[power.argmax()] == pytest.approx(np.hypot(*cycles) / 64)


def test_spectrum_forgets_the_mean_and_sums_to_the_variance() -> None:
    """All of this image's power lies inside the largest circle, so that rings hold all of it."""
    rows, columns = np.mgrid[:40, :40] / 40
    waves = 0.1 * np.sin(2 * np.pi * 3 * rows) + 0.2 * np.cos(2 * np.pi * (4 * rows + 7 * columns))
    _, power = radial_spectrum(0.5 + waves[..., None])
    grid = np.rint(np.hypot(*np.meshgrid(np.fft.fftfreq(40), np.fft.fftfreq(40))) * 40)
    counts = [(grid == ring).sum() for ring in range(1, 21)]
    assert (power * counts).sum() == pytest.approx(waves.var())
    np.testing.assert_allclose(power, radial_spectrum(0.6 + waves[..., None])[1], atol=1e-18)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_figure_has_its_size_and_every_tile(image: np.ndarray, levels: int) -> None:
    picture = bands_figure(image[:, :32], levels=levels)
    assert picture.mode == "RGB"
    assert picture.width == 1824
    rows = np.asarray(picture).min(axis=(1, 2)) < 250
    assert picture.height == pytest.approx(172 + 402 * levels, abs=20)
    assert rows.mean() > 0.7
    frame = np.asarray(picture)
    for edge in (frame[:12], frame[-12:], frame[:, :12], frame[:, -12:]):
        assert (edge == 255).all()  # nothing runs out of the page


def test_figures_are_drawn_in_threads_without_pyplot(image: np.ndarray) -> None:
    with ThreadPoolExecutor(3) as pool:
        first, *others = [np.asarray(p) for p in pool.map(bands_figure, [image] * 3)]
    for other in others:
        np.testing.assert_array_equal(first, other)
    code = (
        "import sys, numpy as np, dpwg.measure.spectra as s; "
        "assert 'matplotlib' not in sys.modules; "
        "s.bands_figure(np.eye(8)[..., None]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8)), r"shape \(H, W, 1 or 3\), found \(8, 8\)"),
        (np.zeros((8, 8, 4)), "shape"),
        (np.zeros((8, 8, 3), dtype=np.uint8), "found uint8; divide by 255"),
        (np.full((8, 8, 3), np.nan), "nan"),
        (np.full((8, 8, 3), 2.0), r"found \[2, 2\]"),
    ],
)
def test_bad_images_are_refused(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decompose(image, levels=1)
    with pytest.raises(ValueError, match=message):
        radial_spectrum(image)


@pytest.mark.parametrize(
    "change", [{"levels": 6}, {"levels": 0}, {"wavelet": "morl"}, {"wavelet": "none"}]
)
def test_impossible_requests_are_refused(image: np.ndarray, change: dict) -> None:
    with pytest.raises(ValueError, match=r"levels|wavelet"):
        decompose(image, **{"levels": 1} | change)
    with pytest.raises(ValueError, match="black image"):
        bands_figure(np.zeros((8, 8, 3)))
