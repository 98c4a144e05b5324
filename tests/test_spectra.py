"""Bands against PyWavelets, Parseval, a sinusoid of known frequency, and the figure's frame."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given
from hypothesis import strategies as st

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

IMAGE = np.random.default_rng(3).random((32, 48, 3))


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_bands_are_those_of_pywavelets_and_of_the_model(wavelet: str) -> None:
    bands = decompose(IMAGE, wavelet=wavelet, levels=3)
    assert tuple(name for name, _ in bands) == band_names(3)
    assert band_names(3)[:5] == ("LL3", "cH3", "cV3", "cD3", "cH2")
    for channel in range(3):
        approximation, *details = pywt.wavedec2(
            IMAGE[..., channel], wavelet, mode="periodization", level=3
        )
        expected = [approximation, *(band for triple in details for band in triple)]
        for (_, band), own in zip(bands, expected, strict=True):
            np.testing.assert_allclose(band[..., channel], own)
    if wavelet == "haar":
        first, *rest = haar_pyramid(torch.from_numpy(IMAGE).permute(2, 0, 1)[None], 3)
        for (_, band), own in zip(bands, [first[0], *(b for d in rest for b in d[0])], strict=True):
            np.testing.assert_allclose(band, own.permute(1, 2, 0).numpy(), atol=1e-12)


@pytest.mark.filterwarnings("ignore:Level value")
@given(
    wavelet=st.sampled_from(["haar", "db2", "db3", "bior2.2"]),
    sides=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    levels=st.integers(1, 3),
    channels=st.sampled_from([1, 3]),
)
def test_bands_of_any_shape_lead_back_to_the_image(wavelet, sides, levels, channels) -> None:
    image = np.random.default_rng(5).random((*sides, channels))
    bands = decompose(image, wavelet=wavelet, levels=levels)
    assert bands[-1][1].shape == (-(-sides[0] // 2), -(-sides[1] // 2), channels)
    seen = reconstruct(bands, wavelet=wavelet, shape=image.shape)
    np.testing.assert_allclose(seen, image, atol=1e-10)


@pytest.mark.parametrize("wavelet", ["haar", "db3"])
def test_each_band_leads_nearer_to_the_image_and_energies_keep_parseval(wavelet: str) -> None:
    bands = decompose(IMAGE, wavelet=wavelet, levels=2)
    energy = [float(np.square(band).sum()) for _, band in bands]
    for count in range(1, 8):
        seen = reconstruct(first_bands(bands, count), wavelet=wavelet, shape=IMAGE.shape)
        left = float(np.square(seen - IMAGE).sum())
        assert left == pytest.approx(sum(energy[count:]), abs=1e-12)
    assert sum(energy) == pytest.approx(np.square(IMAGE).sum())
    shares = energy_shares(bands)
    assert tuple(shares) == band_names(2)
    assert list(shares.values()) == pytest.approx([own / sum(energy) for own in energy])


def test_fewer_bands_give_block_means() -> None:
    coarse = reconstruct(decompose(IMAGE, levels=3)[:4], shape=(8, 12)) / 4
    means = IMAGE.reshape(8, 4, 12, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(coarse, means, atol=1e-12)


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


def test_a_sine_has_one_height_in_two_sizes() -> None:
    def wave(side: int) -> np.ndarray:
        columns = (np.arange(side) + 0.5) / side
        return np.tile(0.5 + 0.3 * np.sin(2 * np.pi * 3 * columns), (side, 1))[..., None]

    figure = spectra_figure({"small": wave(64), "large": wave(256)}, marked=64)
    small, large, line = figure.axes[0].get_lines()
    for item in (small, large):
        cycles, power = item.get_data()
        assert cycles[np.argmax(power)] == pytest.approx(3)
    assert max(small.get_ydata()) == pytest.approx(max(large.get_ydata()))
    assert line.get_xdata()[0] == 32


@pytest.mark.parametrize("levels", [1, 4])
def test_figure_has_its_size_and_every_tile(levels: int) -> None:
    frame = np.asarray(bands_figure(IMAGE[:, :32], levels=levels))
    assert frame.shape[1:] == (1824, 3)
    assert frame.shape[0] == pytest.approx(172 + 402 * levels, abs=20)
    assert (frame.min(axis=(1, 2)) < 250).mean() > 0.7
    for edge in (frame[:12], frame[-12:], frame[:, :12], frame[:, -12:]):
        assert (edge == 255).all()  # nothing runs out of the page


def test_figures_are_drawn_in_threads_without_pyplot() -> None:
    with ThreadPoolExecutor(3) as pool:
        first, *others = [np.asarray(p) for p in pool.map(bands_figure, [IMAGE] * 3)]
    assert all(np.array_equal(first, other) for other in others)
    code = (
        "import sys, numpy as np, dpwg.measure.spectra as s; "
        "assert 'matplotlib' not in sys.modules; "
        "s.bands_figure(np.eye(8)[..., None]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("image", "change", "message"),
    [
        (np.zeros((8, 8)), {}, "shape"),
        (np.zeros((8, 8, 4)), {}, "shape"),
        (np.zeros((8, 8, 3), dtype=np.uint8), {}, "uint8"),
        (np.full((8, 8, 3), np.nan), {}, "nan"),
        (np.full((8, 8, 3), 2.0), {}, r"\[2, 2\]"),
        (IMAGE, {"levels": 6}, "levels"),
        (IMAGE, {"levels": 0}, "levels"),
        (IMAGE, {"wavelet": "morl"}, "wavelet"),
    ],
)
def test_bad_images_and_impossible_requests_are_refused(image, change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decompose(image, **{"levels": 1} | change)
    if not change:
        with pytest.raises(ValueError, match=message):
            radial_spectrum(image)
    with pytest.raises(ValueError, match="black image"):
        bands_figure(np.zeros((8, 8, 3)))
