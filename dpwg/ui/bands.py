"""The Bands tab: an image as a wavelet pyramid, band by band, and its spectrum."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import gradio as gr
import numpy as np
import pywt
import torch
from matplotlib.figure import Figure
from PIL import Image

from dpwg.data.avatars import IMAGE_SIZE
from dpwg.measure.spectra import (
    band_names,
    bands_figure,
    decompose,
    energy_shares,
    first_bands,
    reconstruct,
    spectra_figure,
)
from dpwg.method.pipeline import to_uint8
from dpwg.method.wavelet import coarse_image
from dpwg.ui.families import usual_checkpoint
from dpwg.ui.limits import MAX_LEVELS, MAX_UPLOAD_MEGABYTES
from dpwg.ui.pictures import enlarged
from dpwg.ui.pipelines import MODEL_QUEUE, load_pipeline
from dpwg.ui.shown import Shown, shown_or_example
from dpwg.ui.uploads import SUFFIXES, read_upload
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, get_upsampler

WAVELETS: tuple[str, ...] = tuple(pywt.wavelist(kind="discrete"))
DEFAULT_LEVELS = 4


class Subject(NamedTuple):
    """What is looked at, all uint8 RGB: a picture, its coarse version, its upsampled version."""

    title: str
    image: np.ndarray
    coarse: np.ndarray
    upsampled: np.ndarray
    real: bool


class Pyramid(NamedTuple):
    """The bands of a subject, in the order of the tab's components."""

    about: str
    figure: Image.Image
    table: list[list[str]]


class Rebuilt(NamedTuple):
    """What the first bands give."""

    picture: np.ndarray
    told: str


def from_generated(shown: Shown | None, default: str) -> Subject:
    """The first image of the last generation; without one, an example under `default`."""
    shown = shown_or_example(shown, default, lambda: load_pipeline(default))
    return Subject(shown.title, shown.image[0], shown.coarse[0], shown.image[0], real=False)


def from_upload(path: str | None) -> Subject:
    """An upload at the size of the models' images, its block means, and those upsampled again."""
    if path is None:
        raise gr.Error("Choose a picture first.")
    upsample = get_upsampler(DEFAULT_UPSAMPLER)
    try:
        image = read_upload(path, IMAGE_SIZE)
        image_BCHW = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        coarse_BCHW = coarse_image(image_BCHW, upsample.scale.bit_length() - 1).clamp(0, 1)
        return Subject(
            "your picture",
            image,
            to_uint8(coarse_BCHW)[0],
            to_uint8(upsample(coarse_BCHW))[0],
            real=True,
        )
    except (ValueError, ModuleNotFoundError) as error:
        raise gr.Error(str(error)) from error


def pyramid(subject: Subject | None, wavelet: str, levels: int) -> Pyramid | None:
    """Every band: a picture of all, and a table of name, size and share of the energy."""
    if subject is None:
        return None
    bands = _bands(subject, wavelet, levels)
    try:
        shares = energy_shares(bands)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            figure = bands_figure(subject.image / 255, wavelet=wavelet, levels=int(levels))
    except ValueError as error:
        raise gr.Error(str(error)) from error
    so_far, table = 0.0, []
    for name, band in bands:
        so_far += shares[name]
        size = f"{band.shape[1]}×{band.shape[0]}"
        table.append([name, size, f"{shares[name]:.3%}", f"{so_far:.3%}"])
    basis = pywt.Wavelet(wavelet)
    kind = (
        "is orthogonal, so that the shares are those of the image's own energy"
        if basis.orthogonal
        else "is not orthogonal: the shares are those of the coefficients, not quite of the image"
    )
    fits = pywt.dwt_max_level(subject.image.shape[0], basis)
    wide = (
        f" Its filters wrap around the borders from level {fits + 1} on." if levels > fits else ""
    )
    height, width = subject.image.shape[:2]
    about = (
        f"**{subject.title}**, {width}×{height} pixels. The basis `{wavelet}` "
        f"({basis.family_name}) {kind}.{wide}"
    )
    return Pyramid(about, figure, table)


def rebuild(subject: Subject | None, wavelet: str, levels: int, count: int) -> Rebuilt | None:
    """The image from its first `count` bands alone, the others being zero."""
    if subject is None:
        return None
    bands = _bands(subject, wavelet, levels)
    count = min(int(count), len(bands))
    image = subject.image / 255
    try:
        kept = reconstruct(first_bands(bands, count), wavelet=wavelet, shape=image.shape)
    except ValueError as error:
        raise gr.Error(str(error)) from error
    picture = kept.clip(0, 1)
    loss = float(np.square(picture - image).mean())
    psnr = "all of the image" if loss < 1e-12 else f"PSNR {-10 * math.log10(loss):.1f} dB"
    numbers = sum(band.size for _, band in bands[:count]) / sum(band.size for _, band in bands)
    last = bands[count - 1][0]
    return Rebuilt(
        enlarged((picture * 255).round().astype(np.uint8)[None])[0],
        f"**{count} of {len(bands)} bands**, up to {last}: {numbers:.2%} of the coefficients, "
        f"{psnr}.",
    )


def spectra(subject: Subject | None) -> Figure | None:
    """Radial power spectra: coarse, upsampled, and the real image where there is one."""
    if subject is None:
        return None
    shown = {"real": subject.image} if subject.real else {}
    shown |= {"coarse": subject.coarse, "upsampled": subject.upsampled}
    return spectra_figure(
        {name: image / 255 for name, image in shown.items()}, marked=subject.coarse.shape[0]
    )


def _bands(subject: Subject, wavelet: str, levels: int) -> list[tuple[str, np.ndarray]]:
    if wavelet not in WAVELETS:
        raise gr.Error(f"{wavelet!r:.40} is no discrete basis of PyWavelets; choose one.")
    if levels not in range(1, MAX_LEVELS + 1):
        raise gr.Error(f"Expected 1 to {MAX_LEVELS} levels, found {levels}.")
    with warnings.catch_warnings():  # of long filters on few pixels: `pyramid` says so
        warnings.simplefilter("ignore", UserWarning)
        return decompose(subject.image / 255, wavelet=wavelet, levels=int(levels))


def build_bands(names: Sequence[str], shown: gr.State) -> None:
    """Add the tab's components; `shown` holds what the Generate tab drew last."""
    gr.Markdown(
        "An image is a coarse one and bands of details, each level twice as fine as the one "
        "before. The private model decides the coarse image, the first few bands; the upsampler "
        "adds the others, and may change those few a little."
    )
    subject, default = gr.State(), gr.State(usual_checkpoint(names))
    with gr.Row(elem_classes=["page", "form"]):
        with gr.Column(elem_classes="settings"):
            generated = gr.Button("Take the generated image", variant="primary")
            upload = gr.File(
                label=f"Or your own, up to {MAX_UPLOAD_MEGABYTES} MB",
                file_types=SUFFIXES,
                height=150,
                elem_id="upload",
            )
            wavelet = gr.Dropdown(
                list(WAVELETS),
                value="haar",
                label="Wavelet",
                info="Any discrete one of PyWavelets.",
            )
            levels = gr.Slider(1, MAX_LEVELS, value=DEFAULT_LEVELS, step=1, label="Levels")
            about = gr.Markdown("Take or choose an image.", elem_classes="status")
        with gr.Column(elem_classes="results"):
            figure = gr.Image(
                label="Wavelet pyramid: every band with its name, size and share of the energy",
                format="png",
                interactive=False,
                buttons=["fullscreen", "download"],
                elem_id="bands",
                elem_classes="framed",
            )
        with gr.Column(elem_classes="extras"), gr.Row():
            with gr.Column(min_width=280):
                count = gr.Slider(
                    1,
                    len(band_names(DEFAULT_LEVELS)),
                    value=1,
                    step=1,
                    label="Rebuild from the first bands",
                    elem_id="kept-bands",
                )
                told = gr.Markdown(elem_classes="status")
                picture = gr.Image(
                    label="Rebuilt",
                    format="png",
                    interactive=False,
                    buttons=["download"],
                    elem_id="rebuilt",
                    elem_classes="framed",
                )
            with gr.Column(min_width=280):
                curve = gr.Plot(label="Radial power spectrum", format="png", elem_classes="framed")
                table = gr.Dataframe(
                    headers=["band", "pixels", "energy", "so far"],
                    label="Share of the energy",
                    interactive=False,
                    max_height=380,
                )
    generated.click(
        from_generated,
        [shown, default],
        subject,
        api_name="take_generated",
        concurrency_limit=1,
        concurrency_id=MODEL_QUEUE,
        show_progress_on=figure,
    )
    upload.upload(
        from_upload,
        upload,
        subject,
        api_name="take_upload",
        concurrency_limit=1,
        concurrency_id=MODEL_QUEUE,
        show_progress_on=figure,
    )
    basis = [subject, wavelet, levels]
    gr.on(
        [subject.change, wavelet.input, levels.release],
        pyramid,
        basis,
        [about, figure, table],
        api_name="pyramid",
    )
    levels.change(_slider, [levels, count], count, api_visibility="private", queue=False)
    gr.on(
        [subject.change, wavelet.input, levels.release, count.change],
        rebuild,
        [*basis, count],
        [picture, told],
        api_name="rebuild",
        trigger_mode="always_last",
        show_progress="hidden",
    )
    subject.change(spectra, subject, curve, api_name="spectra")


def _slider(levels: int, count: int) -> gr.Slider:
    bands = len(band_names(int(levels)))
    return gr.Slider(maximum=bands, value=min(int(count), bands))
