"""Bands as numbers and pictures: energies, radial spectra and figures in any PyWavelets basis."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pywt
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

Array = NDArray[np.floating[Any]]
Bands = Sequence[tuple[str, Array]]

_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # Rec. 709, on the stored values
_BLACK, _GREY = "#1a1a1a", "#606060"


def band_names(levels: int) -> tuple[str, ...]:
    """Names coarse to fine, as `pywt.wavedec2` orders bands; level 1 is the finest.

    >>> band_names(2)
    ('LL2', 'cH2', 'cV2', 'cD2', 'cH1', 'cV1', 'cD1')
    """
    details = [f"c{kind}{level}" for level in range(levels, 0, -1) for kind in "HVD"]
    return (f"LL{levels}", *details)


def decompose(
    image_HWC: Array, *, wavelet: str = "haar", levels: int
) -> list[tuple[str, NDArray[np.floating[Any]]]]:
    """(H, W, C) in [0, 1] -> named bands (h, w, C), h and w halved (rounded up) at each level.

    The borders are periodic. Raises ValueError for more levels than the image has halvings.
    """
    _check_image(image_HWC)
    if wavelet not in pywt.wavelist(kind="discrete"):
        raise ValueError(f"Expected wavelet={wavelet!r:.80} to be a discrete one of PyWavelets.")
    names = band_names(levels)
    if levels < 1 or min(image_HWC.shape[:2]) < 2**levels:
        raise ValueError(
            f"Expected levels={levels} to fit an image of {_size(image_HWC)}; 2 is usual."
        )
    approximation, *details = pywt.wavedec2(
        image_HWC, wavelet, mode="periodization", level=levels, axes=(0, 1)
    )
    bands = [approximation, *(band for level in details for band in level)]
    return list(zip(names, bands, strict=True))


def reconstruct(
    bands: Bands, *, wavelet: str = "haar", shape: Sequence[int]
) -> NDArray[np.floating[Any]]:
    """The inverse of `decompose`: the bands in order -> the image of `shape`, (H, W) or (H, W, C).

    Fewer levels of details give the approximation there, which for k levels left out is 2**k times
    the coarse image.
    """
    arrays = [band for _, band in bands]
    triples = [tuple(arrays[start : start + 3]) for start in range(1, len(arrays), 3)]
    image_HWC = pywt.waverec2([arrays[0], *triples], wavelet, mode="periodization", axes=(0, 1))
    height, width = shape[:2]
    return np.asarray(image_HWC)[:height, :width]


def first_bands(bands: Bands, count: int) -> list[tuple[str, NDArray[np.floating[Any]]]]:
    """The same bands with all but the first `count`, coarse to fine, set to zero."""
    return [
        (name, band if place < count else np.zeros_like(band))
        for place, (name, band) in enumerate(bands)
    ]


def energy_shares(bands: Bands) -> dict[str, float]:
    """Each band's share of the summed squared coefficients, 1 in all; LL's holds the image's mean.

    In an orthogonal basis, as Haar is, these are shares of the image's own energy (Parseval).
    """
    energies = {name: float(np.square(band, dtype=np.float64).sum()) for name, band in bands}
    total = sum(energies.values())
    if total == 0:
        raise ValueError("Expected some energy in the bands, found a black image; use another.")
    return {name: energy / total for name, energy in energies.items()}


def radial_spectrum(image_HWC: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frequencies in cycles per pixel up to 1/2, and the mean power of luminance on their circles.

    One ring a cycle per shorter side n, so n // 2 of each. The image's mean is removed first. Power
    is |DFT|^2 / (H * W)^2: over all of the plane it sums to the variance.
    """
    _check_image(image_HWC)
    luminance_HW = image_HWC @ _LUMINANCE if image_HWC.shape[2] == 3 else image_HWC[..., 0]
    height, width = luminance_HW.shape
    shorter = min(height, width)
    power_HW = np.abs(np.fft.fft2(luminance_HW - luminance_HW.mean()) / (height * width)) ** 2
    radius_HW = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    ring_HW = np.rint(radius_HW * shorter).astype(np.int64)
    totals = np.bincount(ring_HW.ravel(), power_HW.ravel())
    counts = np.bincount(ring_HW.ravel())
    rings = np.arange(1, shorter // 2 + 1)
    return rings / shorter, totals[rings] / counts[rings]


def spectra_figure(images: Mapping[str, Array], *, marked: int | None = None) -> Figure:
    """The radial spectra of images of any size in one plot, over cycles per shorter side.

    Powers of one picture in two sizes can be compared: a sine has the same in both. `marked` draws
    a line at half that many pixels a side, the finest that an image so small can hold.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, image_HWC in images.items():
        frequency, power = radial_spectrum(image_HWC)
        cycles = frequency * min(image_HWC.shape[:2])
        axes.loglog(cycles, power.clip(1e-12), label=f"{name}, {_size(image_HWC)}")
    if marked is not None:
        axes.axvline(marked / 2, color=_GREY, linestyle=":")
        style: dict[str, Any] = {"color": _GREY, "rotation": 90, "va": "top"}
        note = f" finest of {marked} pixels "
        axes.text(marked / 2, 1, note, transform=axes.get_xaxis_transform(), **style)
    axes.set(xlabel="frequency, cycles per image side", ylabel="mean power of luminance")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def bands_figure(image_HWC: Array, *, wavelet: str = "haar", levels: int = 2) -> Image:
    """Every band of an image in one labelled RGB picture: name, size in pixels, share of energy.

    One row a level, coarse to fine: an approximation, the three details that refine it, and their
    sum, the next approximation or the image. Errors as `decompose` and `energy_shares` raise them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    bands = decompose(image_HWC, wavelet=wavelet, levels=levels)
    shares = energy_shares(bands)
    approximations = [
        reconstruct(bands[: 1 + 3 * row], wavelet=wavelet, shape=bands[1 + 3 * row][1].shape)
        / 2 ** (levels - row)
        for row in range(levels)
    ]
    pictures = [*approximations, image_HWC]
    details = [bands[1 + 3 * row : 4 + 3 * row] for row in range(levels)]
    stretches = [
        max(float(np.percentile(np.abs([band for _, band in triple]), 99.5)), 1e-6)
        for triple in details
    ]
    scales = ", ".join(
        f"\N{PLUS-MINUS SIGN}{stretch:.2g} (level {levels - row})"
        for row, stretch in enumerate(stretches)
    )
    caption = textwrap.wrap(
        f"Wavelet: {wavelet}. Every row, coarse to fine, adds three bands of details to a coarse "
        "image and gives the next. Per cent: share of all squared coefficients. In details "
        f"mid-grey is zero, and black to white is {scales}.",
        140,
    )

    tile, gap, label = 2.5, 0.45, 0.85  # inches, as all that follow
    head, foot = 0.6, 0.25 + 0.27 * len(caption)
    tall = tile * min(max(image_HWC.shape[0] / image_HWC.shape[1], 0.4), 1.6)
    page_width, page_height = 5 * tile + 6 * gap, head + levels * (tall + label) + foot
    figure = Figure(figsize=(page_width, page_height), dpi=120, facecolor="white")

    def write(x: float, y: float, text: str, **style: Any) -> None:
        """Text at x, y inches from the upper left corner."""
        defaults: dict[str, Any] = {"fontsize": 16, "color": _BLACK}
        figure.text(x / page_width, 1 - y / page_height, text, **(defaults | style))

    def draw(row: int, column: int, picture: Array, name: str, share: float, ink: str) -> None:
        x, y = gap + column * (tile + gap), head + row * (tall + label)
        left, bottom = x / page_width, 1 - (y + tall) / page_height
        axes = figure.add_axes((left, bottom, tile / page_width, tall / page_height))
        axes.imshow(picture.clip(0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#b0b0b0")
        write(x, y + tall + 0.3, name, weight="bold", color=ink)
        write(x + tile, y + tall + 0.3, _percent(share), ha="right", color=ink)
        write(x, y + tall + 0.54, f"{_size(picture)} pixels", fontsize=12, color=_GREY)
        if column < 4:
            sign = "+" if column < 3 else "="
            write(x + tile + gap / 2, y + tall / 2, sign, ha="center", va="center", fontsize=20)

    columns = ("approximation", "horizontal edges", "vertical edges", "diagonal edges", "sum")
    for column, text in enumerate(columns):
        write(gap + column * (tile + gap), head - 0.13, text, fontsize=14, color=_GREY)
    so_far = shares[f"LL{levels}"]
    for row, triple in enumerate(details):
        level = levels - row
        draw(row, 0, pictures[row], f"LL{level}", so_far, _GREY if row else _BLACK)
        for column, (name, band) in enumerate(triple, start=1):
            draw(row, column, 0.5 + band / (2 * stretches[row]), name, shares[name], _BLACK)
            so_far += shares[name]
        name = f"LL{level - 1}" if level > 1 else "image"
        draw(row, 4, pictures[row + 1], name, so_far, _GREY)
    for number, line in enumerate(caption):
        write(gap, page_height - foot + 0.27 * (number + 0.5), line, fontsize=13, color=_GREY)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return Image.fromarray(pixels[..., :3])


def _percent(share: float) -> str:
    return "< 0.01 %" if 0 < share < 5e-5 else f"{100 * share:.2f} %"


def _size(image_HWC: Array) -> str:
    return f"{image_HWC.shape[1]}\N{MULTIPLICATION SIGN}{image_HWC.shape[0]}"


def _check_image(image_HWC: Array) -> None:
    shape = image_HWC.shape
    if len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape:
        raise ValueError(f"Expected image_HWC of shape (H, W, 1 or 3), found {shape}; reshape it.")
    if not np.issubdtype(image_HWC.dtype, np.floating):
        raise ValueError(f"Expected floats in [0, 1], found {image_HWC.dtype}; divide by 255.")
    low, high = image_HWC.min(), image_HWC.max()
    if not (low >= 0 and high <= 1):  # false for NaN too
        raise ValueError(f"Expected values in [0, 1], found [{low:.4g}, {high:.4g}]; clip them.")
