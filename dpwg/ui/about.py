"""The About tab: the method in five pictures, made by the package itself; limits and sources."""

from __future__ import annotations

import functools
import itertools
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
from dpwg.ui.pipelines import enlarged, load_pipeline, square
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, get_upsampler

TEXTS = Path(__file__).with_name("about.md").read_text().split("\n---\n")
"""Of five pictures, then of the two columns below them."""
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
    because = ""
    with in_words():
        for other in dict.fromkeys([name, *siblings(family_of(name))]):
            try:
                return _story(other, because)
            except (ValueError, OSError) as error:
                refused, because = error, f", because `{name}` is damaged"
        raise refused


@functools.cache
def _story(name: str, because: str) -> tuple[Any, ...]:
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
    noise = card.noise_multiplier or 1.0
    facts = {
        "caption": record.captions[0].rstrip("."),
        "coarse": square(config.coarse_size),
        "share": share,
        "codes": config.tokens,
        "each": config.positions * config.codes,
        "sizes": ", ".join(square(d.shape[-1]) for d in decoded),
        "psnr": -10 * math.log10(error),
        "noise": noise,
        "whose": f"that of `{name}`{because}" if card.noise_multiplier else "an example",
        "upsampler": upsample.name,
        "full": square(large.shape[1]),
    }
    pictures = (
        enlarged(image[None])[0],
        bands_figure(pixels, levels=levels),
        np.concatenate([enlarged(to_uint8(d))[0] for d in decoded], axis=1),
        clipping_figure(noise),
        np.concatenate([enlarged(to_uint8(decoded[-1]))[0], enlarged(large)[0]], axis=1),
    )
    texts = [text.format(**facts) for text in TEXTS[: len(pictures)]]
    return tuple(itertools.chain.from_iterable(zip(texts, pictures, strict=True)))


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
        for text in TEXTS[len(LABELS) :]:
            with gr.Column(min_width=300):
                gr.Markdown(text.replace("{bounds}", described()))
