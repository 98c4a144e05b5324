"""The About tab: the method in five pictures, made by the package itself; limits and sources."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import gradio as gr
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from dpwg.data.avatars import IMAGE_SIZE
from dpwg.data.faces import face
from dpwg.measure.spectra import bands_figure, decompose, energy_shares
from dpwg.method.pipeline import to_uint8
from dpwg.method.wavelet import coarse_image
from dpwg.ui.families import FACES, siblings, usual_checkpoint
from dpwg.ui.figures import clipping_figure
from dpwg.ui.limits import described
from dpwg.ui.pictures import enlarged
from dpwg.ui.pipelines import MODEL_QUEUE, load_pipeline
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, get_upsampler

ROOT = Path(__file__).resolve().parents[2]
SOURCES = """\
- The method: [DP-Wavelet](https://arxiv.org/abs/2602.23262) (arXiv 2602.23262), built on the
  [Spectral Image Tokenizer](https://arxiv.org/abs/2412.09607) (arXiv 2412.09607). This is an
  open implementation, at a small size.
- DP-SGD: [Abadi et al. 2016](https://arxiv.org/abs/1607.00133). What epsilon leaves an attacker:
  [Kairouz et al. 2015](https://arxiv.org/abs/1311.0776). Privacy cards:
  [How to DP-fy ML, Ponomareva et al. 2023](https://arxiv.org/abs/2303.00654), section 5.3.3.
- Accountants: PLD by dp-accounting (Google), PRV and RDP by Opacus (Meta)."""
OFFLINE = """Nothing is downloaded at run time, unless whoever starts the app names models of the
Hugging Face Hub, and this page asks no other address for anything: fonts, scripts and models come
with the installed packages. Install once with a network, then pull the plug."""
EXAMPLE = 3
"""The record that the pictures show, of neither the training nor the test set."""


class Story(NamedTuple):
    """Five pictures, each with a text, in the order of the tab's components."""

    image_text: str
    image: np.ndarray
    bands_text: str
    bands: Image.Image
    codes_text: str
    codes: np.ndarray
    noise_text: str
    noise: Figure
    upsampled_text: str
    upsampled: np.ndarray


@functools.cache
def story(name: str) -> Story:
    """The method on one record, with the tokenizer and the noise of checkpoint `name`."""
    release = load_pipeline(name).release
    config, card = release.tokenizer.config, release.card
    upsample = get_upsampler(DEFAULT_UPSAMPLER)
    record = face("about", EXAMPLE)
    image = record.image(IMAGE_SIZE)
    levels = (IMAGE_SIZE // config.coarse_size).bit_length() - 1
    pixels = image.astype(np.float32) / 255
    share = energy_shares(decompose(pixels, levels=levels))[f"LL{levels}"]
    means = coarse_image(torch.from_numpy(pixels).permute(2, 0, 1)[None], levels)
    codes = release.tokenizer.encode(means)
    decoded = [release.tokenizer.decode(codes[: k + 1]) for k in range(config.scales)]
    error = float((decoded[-1] - means).square().mean())
    large = to_uint8(upsample(decoded[-1]))
    coarse, full = (
        f"{config.coarse_size}×{config.coarse_size}",
        f"{large.shape[1]}×{large.shape[2]}",
    )
    sizes = ", ".join(f"{d.shape[-1]}×{d.shape[-1]}" for d in decoded)
    each = config.positions * config.codes
    noise = card.noise_multiplier or 1.0
    whose = f"that of `{name}`" if card.noise_multiplier else "an example"
    return Story(
        image_text="### 1. A record\nA picture with its caption: "
        f"*{record.captions[0].rstrip('.')}.* It is synthetic (DiceBear `avataaars`): nobody's "
        "face is shown.",
        image=enlarged(image[None])[0],
        bands_text=f"### 2. Its wavelet bands\nThe {coarse} band holds {share:.1%} of the energy, "
        "and with it layout, colours and who it is. The finer bands are outlines and texture.",
        bands=bands_figure(pixels, levels=levels),
        codes_text=f"### 3. The coarse picture as codes\nThe tokenizer turns {coarse} into "
        f"{config.tokens} codes, {each} a scale, coarse to fine: the first scales alone already "
        f"decode to a smaller picture ({sizes}). Here they keep {-10 * math.log10(error):.1f} dB "
        "PSNR. WaveletGPT predicts these codes from the caption, in this order.",
        codes=np.concatenate([enlarged(to_uint8(d))[0] for d in decoded], axis=1),
        noise_text="### 4. The noise\nDP-SGD fine-tunes WaveletGPT on the sensitive records. Each "
        "record's gradient is cut to one length (the circle), and Gaussian noise is added to the "
        "sum, so that no record's arrow can be made out. A sketch with made-up arrows in two "
        f"dimensions. The noise multiplier is {whose}: {noise:.4g} radii of the circle are one "
        "standard deviation (dark), twice that is pale, and the dot is a draw.",
        noise=clipping_figure(noise),
        upsampled_text=f"### 5. The public upsampler\nA frozen model, {upsample.name}, turns "
        f"{coarse} into {full}. It sees nothing but the coarse picture, so by "
        "post-processing it costs no privacy; what it knew before, epsilon does not cover. What it "
        "adds, it invents.",
        upsampled=np.concatenate([enlarged(to_uint8(decoded[-1]))[0], enlarged(large)[0]], axis=1),
    )


def section(title: str) -> str:
    """A section of the README without its title; empty where the package is used without it."""
    path = ROOT / "README.md"
    text = path.read_text() if path.exists() else ""
    _, found, rest = text.partition(f"\n## {title}\n")
    return rest.partition("\n## ")[0].strip() if found else ""


def build_about(names: Sequence[str], tab: gr.Tab) -> None:
    """Add the tab's components. The pictures are made when the tab is first opened."""
    gr.Markdown(
        "An image is a pyramid of wavelet bands. The coarse ones say who it is, and are generated "
        "privately; the fine ones are texture, and come from a public model."
    )
    outputs: list[gr.components.Component] = []
    for number, label in enumerate(
        ("A record", "Its bands", "Its codes, decoded scale by scale", "A noisy step", "Upsampled"),
        start=1,
    ):
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                outputs.append(gr.Markdown(f"### {number}. {label}\n…"))
            with gr.Column(scale=3, min_width=300):
                outputs.append(
                    gr.Plot(label=label, format="png", elem_classes="framed")
                    if label == "A noisy step"
                    else gr.Image(
                        label=label,
                        format="png",
                        interactive=False,
                        buttons=["fullscreen"],
                        elem_classes=["told", "framed"],
                    )
                )
    # The record is a drawn face: a model of faces tells its story best.
    name = gr.State(usual_checkpoint(siblings(FACES, names) or names))
    tab.select(
        story,
        name,
        outputs,
        api_name="story",
        concurrency_limit=1,
        concurrency_id=MODEL_QUEUE,
        show_progress="minimal",
    )
    with gr.Row():
        with gr.Column(min_width=300):
            gr.Markdown(f"### Limits of the models\n{section('Limits')}")
            gr.Markdown(f"### Bounds of this page\n{described()}")
            gr.Markdown(f"### Sources\n{SOURCES}")
        with gr.Column(min_width=300):
            private = "What is private, and what is not"
            gr.Markdown(f"### {private}\n{section(private)}")
    with gr.Row():
        with gr.Column(min_width=300):
            gr.Markdown(f"### Run it offline\n{OFFLINE}\n\n{section('Run it')}")
        with gr.Column(min_width=300):
            gr.Markdown(f"### Cite\n{section('Cite')}")
