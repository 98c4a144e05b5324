"""The Generate page: a caption to pictures, shown scale by scale as the model draws them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from PIL import Image

from dpwg.checkpoint import checkpoint_names, checkpoint_root, find_checkpoint, load_card
from dpwg.pipeline import MAX_SEED, DPWaveletPipeline, GenerationResult
from dpwg.privacy.accounting import explain
from dpwg.privacy.card import PrivacyCard
from dpwg.sampling import Sampling
from dpwg.spectra import bands_figure
from dpwg.text import MAX_CAPTION_CHARACTERS
from dpwg.ui.pipelines import load_pipeline, load_upsampler, stream
from dpwg.upsample import UPSAMPLERS

MAX_IMAGES = 4
MAX_EXAMPLES = 10
SHOWN_PIXELS = 512
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "captions.txt"

DEFAULT_UPSAMPLER = "realesrgan-anime"
NO_CHECKPOINT = """### There is no checkpoint yet

None was found in `{root}`. Train one with `python -m dpwg train faces`, or let
`DPWG_CHECKPOINTS` name a folder that holds some, and start this page again."""

Pictures = list[tuple[np.ndarray, str | None]]


class Frame(NamedTuple):
    """What the page shows at one moment, in the order of its components."""

    coarse_title: str
    coarse: Pictures
    image_title: str
    images: Pictures | None
    status: str
    bands_text: str = ""
    bands: Image.Image | None = None
    files: list[str] | None = None


def describe_checkpoint(name: str) -> tuple[str, str]:
    """What a checkpoint promises, in one sentence and as its whole card, both Markdown."""
    card = load_card(find_checkpoint(name))
    return f"**{_promise(card)}.** {explain(card.epsilon, card.delta)}", card.to_markdown()


def describe_upsampler(name: str) -> str:
    """What an upsampler does to the picture."""
    return dict(UPSAMPLERS)[name]


def random_seed() -> int:
    """A seed that is short enough to be read out."""
    return random.randrange(1_000_000)


def generate(
    checkpoint: str,
    caption: str,
    seed: int,
    count: int,
    guidance: float,
    temperature: float,
    upsampler: str,
) -> Iterator[Frame]:
    """Frames of `count` images with seeds from `seed`: one a scale, then the finished pictures.

    An empty caption draws unconditionally. The files of the last frame live until it is left.
    """
    try:
        if seed not in range(MAX_SEED + 1) or count not in range(1, MAX_IMAGES + 1):
            raise ValueError(
                f"Expected seed={seed} to be an integer in [0, {MAX_SEED}] and count={count} one in "
                f"[1, {MAX_IMAGES}]."
            )
        pipe = load_pipeline(checkpoint)
        seeds = tuple(range(seed, seed + int(count)))
        steps = stream(
            pipe,
            (caption.strip(),) * len(seeds),
            seed=seeds,
            guidance=guidance,
            temperature=temperature,
            upsampler=load_upsampler(upsampler),
        )
        for step in steps:
            if isinstance(step, GenerationResult):
                yield from _finished(checkpoint, upsampler, step)
            else:
                yield _partial(pipe, upsampler, step, seeds)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raise gr.Error(str(error), print_exception=False) from error


def result_json(checkpoint: str, result: GenerationResult) -> dict[str, Any]:
    """The facts of a result that belong beside its pictures; `seed` is the first image's."""
    return {
        "checkpoint": checkpoint,
        "caption": result.captions[0],
        "seed": result.seed,
        "epsilon": result.card.epsilon,
        "delta": result.card.delta,
        "coarse_size": result.coarse.shape[1],
        "image_size": result.image.shape[1],
        "seconds": result.seconds,
    }


def example_captions() -> list[str]:
    """The lines of examples/captions.txt; none where the package is used without it."""
    return EXAMPLES.read_text().splitlines()[:MAX_EXAMPLES] if EXAMPLES.exists() else []


def _partial(
    pipe: DPWaveletPipeline, upsampler: str, partial_BHWC: np.ndarray, seeds: Sequence[int]
) -> Frame:
    size, coarse_size = partial_BHWC.shape[1], pipe.release.tokenizer.config.coarse_size
    done = size == coarse_size
    status = f"Public upsampler {upsampler} at work" if done else f"Drawing {_square(2 * size)}"
    return Frame(
        coarse_title=_coarse_title(size, pipe.release.card),
        coarse=_enlarged(partial_BHWC, seeds),
        image_title="### Image\n*public upsampler*",
        images=None,
        status=f"{status} …",
    )


def _finished(checkpoint: str, upsampler: str, result: GenerationResult) -> Iterator[Frame]:
    coarsest, coarse, full = (
        images.shape[1] for images in (result.partials[0], result.coarse, result.image)
    )
    times = " · ".join(f"{name} {value:.2f} s" for name, value in result.seconds.items())
    seeds = ("seed " if len(result.seeds) == 1 else "seeds ") + ", ".join(map(str, result.seeds))
    unconditional = "" if result.captions[0] else "no caption, so unconditional · "
    levels = (full // coarsest).bit_length() - 1
    with TemporaryDirectory(prefix="dpwg-") as folder:
        yield Frame(
            coarse_title=_coarse_title(coarse, result.card),
            coarse=_enlarged(result.coarse, result.seeds),
            image_title=f"### Image {_square(full)}\n*public upsampler*",
            images=_labelled(result.image, result.seeds),
            status=f"{unconditional}{seeds} · {times}",
            bands_text=f"Details of fewer than {_square(coarse)} pixels follow the coarse picture; "
            "the larger ones are the public upsampler's invention.",
            bands=bands_figure(result.image[0] / 255.0, levels=levels),
            files=_write(Path(folder), checkpoint, result),
        )


def _coarse_title(size: int, card: PrivacyCard) -> str:
    return f"### Coarse {_square(size)}\n*{_author(card)}*"


def _write(folder: Path, checkpoint: str, result: GenerationResult) -> list[str]:
    """The pictures in their own size and result.json."""
    files = []
    for seed, coarse, image in zip(result.seeds, result.coarse, result.image, strict=True):
        for name, picture in ((f"seed-{seed}-coarse.png", coarse), (f"seed-{seed}.png", image)):
            Image.fromarray(picture).save(folder / name)
            files.append(str(folder / name))
    facts = folder / "result.json"
    facts.write_text(json.dumps(result_json(checkpoint, result), indent=2) + "\n")
    return [*files, str(facts)]


def _labelled(images_BHWC: np.ndarray, seeds: Sequence[int]) -> Pictures:
    labels = [f"seed {seed}" for seed in seeds] if len(seeds) > 1 else [None]
    return list(zip(images_BHWC, labels, strict=True))


def _enlarged(images_BHWC: np.ndarray, seeds: Sequence[int]) -> Pictures:
    """Every pixel as a square, so that no browser smooths it."""
    times = max(SHOWN_PIXELS // images_BHWC.shape[1], 1)
    return _labelled(images_BHWC.repeat(times, axis=1).repeat(times, axis=2), seeds)


def _square(size: int) -> str:
    return f"{size}\N{MULTIPLICATION SIGN}{size}"


def _promise(card: PrivacyCard) -> str:
    if card.epsilon is None:
        return "No privacy"
    if card.epsilon == 0:
        return "Public data only, ε = 0"
    return f"ε = {card.epsilon:.4g} at δ = {card.delta:.2g}"


def _author(card: PrivacyCard) -> str:
    if card.epsilon is None:
        return "model trained without privacy"
    return f"private model, ε = {card.epsilon:.4g}" if card.epsilon else "public model, ε = 0"


def build_generate() -> None:
    """Add the page to the Blocks around it. Reads the checkpoints' names, loads none."""
    names = checkpoint_names()
    if not names:
        gr.Markdown(NO_CHECKPOINT.format(root=checkpoint_root()))
        return
    with gr.Row(elem_classes="prompt"):
        caption = gr.Textbox(
            label="Caption",
            info="Empty means unconditional: the model draws whatever it likes.",
            placeholder="A person smiling, with long curly red hair and pale skin, wearing …",
            max_lines=4,
            max_length=MAX_CAPTION_CHARACTERS,
            scale=6,
            min_width=300,
            elem_id="caption",
        )
        button = gr.Button("Generate", variant="primary", size="lg", min_width=140)
    gr.Examples(
        [[line] for line in example_captions()],
        inputs=caption,
        label="Examples",
        examples_per_page=MAX_EXAMPLES,
        elem_id="examples",
        api_visibility="private",
    )
    with gr.Row(elem_classes="page"):
        with gr.Column(elem_classes="settings"):
            with gr.Group():
                checkpoint = gr.Radio(names, value=names[len(names) // 2], label="Checkpoint")
                promise = gr.Markdown(elem_classes="promise")
            with gr.Group():
                count = gr.Slider(1, MAX_IMAGES, value=1, step=1, label="Images")
                seed = gr.Number(0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed")
                dice = gr.Button("⚄ Random seed", size="sm")
            with gr.Accordion("More settings", open=False):
                guidance = gr.Slider(
                    0,
                    10,
                    value=Sampling.guidance,
                    step=0.1,
                    label="Guidance",
                    info="1 is none; more follows the caption more closely.",
                )
                temperature = gr.Slider(
                    0,
                    2,
                    value=Sampling.temperature,
                    step=0.05,
                    label="Temperature",
                    info="0 always takes the likeliest code; 1 draws as the model does.",
                )
                upsampler = gr.Dropdown(
                    [name for name, _ in UPSAMPLERS],
                    value=DEFAULT_UPSAMPLER,
                    label="Upsampler",
                    info=describe_upsampler(DEFAULT_UPSAMPLER),
                )
        with gr.Column(elem_classes="results"):
            with gr.Row():
                with gr.Column(min_width=280):
                    coarse_title = gr.Markdown(
                        "### Coarse\n*chosen checkpoint*", elem_classes="title"
                    )
                    coarse = _gallery("coarse")
                with gr.Column(min_width=280):
                    image_title = gr.Markdown("### Image\n*public upsampler*", elem_classes="title")
                    images = _gallery("images")
            status = gr.Markdown("Write a caption and press Generate.", elem_classes="status")
        with gr.Column(elem_classes="extras"):
            with gr.Accordion("Wavelet bands of the first image"):
                bands_text = gr.Markdown("They appear with the first picture.")
                bands = gr.Image(
                    show_label=False,
                    container=False,
                    format="png",
                    interactive=False,
                    buttons=["fullscreen", "download"],
                    elem_id="bands",
                )
            with gr.Accordion("Download", open=False):
                files = gr.Files(show_label=False, interactive=False)
            with gr.Accordion("Privacy card of the chosen checkpoint", open=False):
                card = gr.Markdown(elem_classes="card")

    gr.on(
        fn=describe_checkpoint,
        inputs=checkpoint,
        outputs=[promise, card],
        api_name="describe_checkpoint",
    )
    upsampler.change(
        lambda name: gr.Dropdown(info=describe_upsampler(name)),
        upsampler,
        upsampler,
        api_visibility="private",
    )
    dice.click(random_seed, outputs=seed, api_name="random_seed")
    gr.on(
        [button.click, caption.submit],
        generate,
        inputs=[checkpoint, caption, seed, count, guidance, temperature, upsampler],
        outputs=[coarse_title, coarse, image_title, images, status, bands_text, bands, files],
        api_name="generate",
        concurrency_limit=1,
        scroll_to_output=True,
        show_progress_on=coarse,
    )


def _gallery(name: str) -> gr.Gallery:
    return gr.Gallery(
        show_label=False,
        format="png",
        object_fit="contain",
        interactive=False,
        buttons=["fullscreen", "download"],
        elem_id=name,
        elem_classes="pictures",
    )
