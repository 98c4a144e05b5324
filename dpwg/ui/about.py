"""The About tab: the method in five pictures, made by the package itself; limits and sources."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch

from dpwg.data.avatars import IMAGE_SIZE
from dpwg.data.faces import face
from dpwg.measure.spectra import bands_figure, decompose, energy_shares
from dpwg.method.pipeline import to_uint8
from dpwg.method.wavelet import coarse_image
from dpwg.ui.families import FACES, family_of, siblings, usual_checkpoint
from dpwg.ui.figures import clipping_figure
from dpwg.ui.limits import described
from dpwg.ui.parts import ON_MODEL, in_words, picture, plot
from dpwg.ui.pictures import enlarged, square
from dpwg.ui.pipelines import load_pipeline
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, get_upsampler

TEXT = Path(__file__).with_name("about.md")
INTRODUCTION = """An image is a pyramid of wavelet bands. The coarse ones tell who it is, and are
generated privately; the fine ones are texture, and come from a public model."""
EXAMPLE = 3
"""The record that the pictures show, of neither the training nor the test set."""
NOISE = "A noisy step"
LABELS = ("A record", "Its bands", "Its codes, decoded scale by scale", NOISE, "Upsampled")


def story(name: str) -> tuple[Any, ...]:
    """Five texts, each with its picture, told with a checkpoint; where that one is damaged, with
    the next of its data set, and this is told as well.
    """
    told = f"`{name}`"
    with in_words():
        for other in dict.fromkeys([name, *siblings(family_of(name))]):
            try:
                return _story(other, told)
            except (ValueError, OSError) as error:
                refused, told = error, f"`{{}}`, because `{name}` is damaged"
        raise refused


@functools.cache
def _story(name: str, told: str) -> tuple[Any, ...]:
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
    coarse, full = square(config.coarse_size), square(large.shape[1])
    sizes = ", ".join(square(d.shape[-1]) for d in decoded)
    each = config.positions * config.codes
    noise = card.noise_multiplier or 1.0
    whose = f"that of {told.format(name)}" if card.noise_multiplier else "an example"
    return (
        "### 1. A record\nA picture with its caption: "
        f"*{record.captions[0].rstrip('.')}.* It is synthetic (DiceBear `avataaars`), so nobody's "
        "face is shown.",
        enlarged(image[None])[0],
        f"### 2. Its wavelet bands\nThe {coarse} band holds {share:.1%} of the energy, and with it "
        "layout, colours and who it is. The finer bands are outlines and texture.",
        bands_figure(pixels, levels=levels),
        f"### 3. The coarse picture as codes\nThe tokenizer turns {coarse} into {config.tokens} "
        f"codes, {each} per scale, coarse to fine. The first scales alone already decode to a "
        f"smaller picture ({sizes}). Here the codes keep {-10 * math.log10(error):.1f} dB PSNR. "
        "WaveletGPT predicts these codes from the caption, in this order.",
        np.concatenate([enlarged(to_uint8(d))[0] for d in decoded], axis=1),
        "### 4. The noise\nDP-SGD fine-tunes WaveletGPT on the sensitive records. Each record's "
        "gradient is clipped to a fixed length (the circle), and Gaussian noise is added to the "
        "sum, so that no single record's arrow can be made out. This is a sketch in two "
        f"dimensions, with made-up arrows. The noise multiplier is {whose}: {noise:.4g} radii of "
        "the circle are one standard deviation (dark), twice that is pale, and the dot is a draw.",
        clipping_figure(noise),
        f"### 5. The public upsampler\nA frozen model, {upsample.name}, turns {coarse} into "
        f"{full}. It sees nothing but the coarse picture, so it costs no privacy (that is "
        "post-processing); what it knew before, epsilon says nothing about. Whatever detail it "
        "adds, it invents.",
        np.concatenate([enlarged(to_uint8(decoded[-1]))[0], enlarged(large)[0]], axis=1),
    )


def build_about(names: Sequence[str], tab: gr.Tab) -> None:
    """Add the tab's components. The pictures are made when the tab is first opened."""
    gr.Markdown(INTRODUCTION)
    outputs: list[gr.components.Component] = []
    for number, label in enumerate(LABELS, start=1):
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                outputs.append(gr.Markdown(f"### {number}. {label}\n…"))
            with gr.Column(scale=3, min_width=300):
                outputs.append(plot(label) if label == NOISE else picture(label, None, "told"))
    # The record is a drawn face: a model of faces tells its story best.
    name = gr.State(usual_checkpoint(siblings(FACES, names) or names))
    tab.select(story, name, outputs, api_name="story", show_progress="minimal", **ON_MODEL)
    with gr.Row():
        for text in TEXT.read_text().split("\n---\n"):
            with gr.Column(min_width=300):
                gr.Markdown(text.replace("{bounds}", described()))
