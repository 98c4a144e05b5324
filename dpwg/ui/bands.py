"""The Bands tab: an image as a wavelet pyramid, band by band, and its spectrum."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
import pywt
import torch
from matplotlib.figure import Figure
from PIL import Image

from dpwg.data import pictures
from dpwg.data.avatars import IMAGE_SIZE
from dpwg.measure import spectra as measured
from dpwg.method.pipeline import to_uint8
from dpwg.method.wavelet import coarse_image
from dpwg.ui.families import usual_checkpoint
from dpwg.ui.limits import MAX_LEVELS, MAX_UPLOAD_MEGABYTES, MAX_UPLOAD_PIXELS
from dpwg.ui.own import Shown, shown_or_example
from dpwg.ui.parts import ON_MODEL, QUIET, in_words, picture, plot, slider, table
from dpwg.ui.pipelines import enlarged
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, get_upsampler

WAVELETS: tuple[str, ...] = tuple(pywt.wavelist(kind="discrete"))
DEFAULT_LEVELS = 4
INTRODUCTION = """An image is a coarse picture plus bands of detail, each level twice as fine as the
one before. The private model decides the coarse picture, which is the first few bands; the public
upsampler adds the others, and may change those few a little."""


class Subject(NamedTuple):
    """What is looked at, all uint8 RGB: a picture, its coarse version, its upsampled version."""

    title: str
    image: np.ndarray
    coarse: np.ndarray
    upsampled: np.ndarray
    real: bool


def from_generated(shown: Shown | None, default: str) -> Subject:
    """The first image of the last generation; without one, an example under `default`."""
    with in_words():
        shown = shown_or_example(shown, default)
    return Subject(shown.title, shown.image[0], shown.coarse[0], shown.image[0], real=False)


def from_upload(path: str | None) -> Subject:
    """An upload at the size of the models' images, its block means, and those upsampled again."""
    with in_words():
        if path is None:
            raise ValueError("Choose a picture first.")
        image, upsample = read_upload(path, IMAGE_SIZE), get_upsampler(DEFAULT_UPSAMPLER)
        image_BCHW = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        coarse_BCHW = coarse_image(image_BCHW, upsample.scale.bit_length() - 1).clamp(0, 1)
        coarse, upsampled = to_uint8(coarse_BCHW)[0], to_uint8(upsample(coarse_BCHW))[0]
    return Subject("your picture", image, coarse, upsampled, real=True)


def read_upload(path: str | Path, size: int) -> np.ndarray:
    """The central square of a picture at `size` pixels a side: uint8 RGB (size, size, 3).

    The file is removed, whatever it is. Raises ValueError, in words and without the path, for one
    that is no such picture, is broken, is too large, or was read before.
    """
    most = MAX_UPLOAD_MEGABYTES * 1_000_000
    try:
        with Path(path).open("rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        raise ValueError("This picture was read and removed; choose it again.") from None
    finally:
        Path(path).unlink(missing_ok=True)
    if len(content) > most:
        raise ValueError(f"Expected a file of at most {MAX_UPLOAD_MEGABYTES} MB; shrink it first.")
    found = pictures.open_picture(content, max_pixels=MAX_UPLOAD_PIXELS, formats=pictures.KINDS)
    return pictures.pixels(found, size)


def pyramid(
    subject: Subject | None, wavelet: str, levels: int
) -> tuple[str, Image.Image, list[list[str]]]:
    """Every band: what is seen, a picture of all, and each one's name, size and energy."""
    with _looking_at(subject) as taken:
        image = taken.image / 255
        bands = measured.decompose(image, wavelet=wavelet, levels=levels)
        shares = measured.energy_shares(bands)
        figure = measured.bands_figure(image, wavelet=wavelet, levels=levels)
    so_far, rows = 0.0, []
    for name, band in bands:
        so_far += shares[name]
        size = f"{band.shape[1]}×{band.shape[0]}"
        rows.append([name, size, f"{shares[name]:.3%}", f"{so_far:.3%}"])
    basis, (height, width) = pywt.Wavelet(wavelet), image.shape[:2]
    kind = "is orthogonal: the shares are those of the image's own energy"
    if not basis.orthogonal:
        kind = "is not orthogonal: the shares are those of its coefficients, not of the image"
    about = (
        f"**{taken.title}**, {width}×{height} pixels. The wavelet `{wavelet}` "
        f"({basis.family_name}) {kind}."
    )
    if levels > (fits := pywt.dwt_max_level(height, basis)):
        about += f" Its filters wrap around the borders from level {fits + 1} on."
    return about, figure, rows


def rebuild(
    subject: Subject | None, wavelet: str, levels: int, count: int
) -> tuple[np.ndarray, str]:
    """The image from its first `count` bands alone, the others being zero, and how near it is."""
    with _looking_at(subject) as taken:
        image = taken.image / 255
        bands = measured.decompose(image, wavelet=wavelet, levels=levels)
        count = min(count, len(bands))
        kept = measured.reconstruct(
            measured.first_bands(bands, count), wavelet=wavelet, shape=image.shape
        )
    clipped = kept.clip(0, 1)
    loss = float(np.square(clipped - image).mean())
    psnr = "the whole image" if loss < 1e-12 else f"PSNR {-10 * math.log10(loss):.1f} dB"
    numbers = sum(band.size for _, band in bands[:count]) / sum(band.size for _, band in bands)
    told = (
        f"**{count} of {len(bands)} bands**, up to {bands[count - 1][0]}: {numbers:.2%} of the "
        f"coefficients, {psnr}."
    )
    return enlarged((clipped * 255).round().astype(np.uint8)[None])[0], told


def spectra(subject: Subject | None) -> Figure:
    """Radial power spectra: coarse, upsampled, and the real image where there is one."""
    with _looking_at(subject) as taken:
        shown = {"real": taken.image} if taken.real else {}
        shown |= {"coarse": taken.coarse, "upsampled": taken.upsampled}
        images = {name: image / 255 for name, image in shown.items()}
        return measured.spectra_figure(images, marked=taken.coarse.shape[0])


@contextmanager
def _looking_at(subject: Subject | None) -> Iterator[Subject]:
    """The subject, if one was taken; what cannot be done with it is told in words."""
    with in_words(), warnings.catch_warnings():  # of long filters on few pixels: `pyramid` says so
        warnings.simplefilter("ignore", UserWarning)
        if subject is None:
            raise ValueError("Take the generated image or choose your own first.")
        yield subject


def build_bands(names: Sequence[str], shown: gr.State) -> None:
    """Add the tab's components; `shown` holds what the Generate tab drew last."""
    gr.Markdown(INTRODUCTION)
    subject, default = gr.State(), gr.State(usual_checkpoint(names))
    with gr.Row(elem_classes=["page", "form"]):
        with gr.Column(elem_classes="settings"):
            generated = gr.Button("Take the generated image", variant="primary")
            label = f"Or your own, up to {MAX_UPLOAD_MEGABYTES} MB"
            kinds = list(pictures.SUFFIXES)
            upload = gr.File(label=label, file_types=kinds, height=150, elem_id="upload")
            info = "Any discrete wavelet of PyWavelets."
            wavelet = gr.Dropdown(list(WAVELETS), value="haar", label="Wavelet", info=info)
            levels = slider("Levels", 1, MAX_LEVELS, DEFAULT_LEVELS)
            about = gr.Markdown("Take or choose an image.", elem_classes="status")
        with gr.Column(elem_classes="results"):
            figure = picture(
                "Wavelet pyramid: every band with its name, size and share of the energy", "bands"
            )
        with gr.Column(elem_classes="extras"), gr.Row():
            with gr.Column(min_width=280):
                most = len(measured.band_names(DEFAULT_LEVELS))
                count = slider("Rebuild from the first bands", 1, most, 1, elem_id="kept-bands")
                told = gr.Markdown(elem_classes="status")
                rebuilt = picture("Rebuilt", "rebuilt")
            with gr.Column(min_width=280):
                curve = plot("Radial power spectrum")
                headers = ["band", "pixels", "energy", "so far"]
                shares = table("Share of the energy", headers, max_height=380)
    working: dict[str, Any] = {"show_progress_on": figure, **ON_MODEL}
    generated.click(from_generated, [shown, default], subject, api_name="take_generated", **working)
    upload.upload(from_upload, upload, subject, api_name="take_upload", **working)
    basis, seen = [subject, wavelet, levels], [rebuilt, told]
    quiet: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden"}
    count.change(rebuild, [*basis, count], seen, **quiet)
    changes = [subject.change, wavelet.input, levels.release]
    gr.on(changes, pyramid, basis, [about, figure, shares]).success(
        rebuild, [*basis, count], seen, api_visibility="private", **quiet
    )
    levels.change(_slider, [levels, count], count, **QUIET)
    subject.change(spectra, subject, curve)


def _slider(levels: int, count: int) -> gr.Slider:
    bands = len(measured.band_names(levels))
    return gr.Slider(maximum=bands, value=min(count, bands))
