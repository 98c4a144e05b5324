"""The Generate page: a caption to pictures, shown scale by scale as the model draws them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import gradio as gr
import numpy as np
from gradio.components import Component
from PIL import Image

from dpwg.checkpoint import checkpoint_names, checkpoint_root, find_checkpoint, load_card
from dpwg.pipeline import MAX_SEED, GenerationResult
from dpwg.privacy.accounting import explain
from dpwg.privacy.card import PrivacyCard
from dpwg.sampling import Sampling
from dpwg.spectra import bands_figure
from dpwg.text import MAX_CAPTION_CHARACTERS
from dpwg.ui.pipelines import load_pipeline, stream
from dpwg.upsample import DEFAULT_UPSAMPLER, UPSAMPLERS

MAX_IMAGES = 4
SHOWN_PIXELS = 512
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "captions.txt"
IMAGE_TITLE = "### Image {}\n*public upsampler*"
NO_CHECKPOINT = """### There is no checkpoint yet

None was found in `{root}`. Make the first with `python -m dpwg data`, `python -m dpwg tokenizer`
and `python -m dpwg pretrain`, a private one with `python -m dpwg finetune`; or let
`DPWG_CHECKPOINTS` name a folder that holds some. Then start this page again."""

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
    try:
        card = load_card(find_checkpoint(name))
    except (ValueError, FileNotFoundError) as error:
        raise gr.Error(str(error)) from error
    if card.epsilon is None:
        promise = "No privacy"
    elif card.epsilon == 0:
        promise = "Public data only, ε = 0"
    else:
        promise = f"ε = {card.epsilon:.4g} at δ = {card.delta:.4g}"
    return f"**{promise}.** {explain(card.epsilon, card.delta)}", card.to_markdown()


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
    """Frames of `count` images with seeds from `seed`: one a scale, the pictures, then the rest.

    An empty caption draws unconditionally. The files of the last frame live until it is left.
    """
    try:
        if not (isinstance(seed, int) and 0 <= seed <= MAX_SEED):
            raise ValueError(f"Expected seed={seed} to be an integer in [0, {MAX_SEED}].")
        if count not in range(1, MAX_IMAGES + 1):
            raise ValueError(f"Expected count={count} to be an integer in [1, {MAX_IMAGES}].")
        pipe = load_pipeline(checkpoint)
        seeds = tuple(range(seed, seed + int(count)))
        steps = stream(
            pipe,
            (caption.strip(),) * len(seeds),
            seed=seeds,
            settings=Sampling(guidance=guidance, temperature=temperature),
            upsampler=upsampler,
        )
        for step in steps:
            if isinstance(step, GenerationResult):
                yield from _finished(checkpoint, step)
                continue
            size = step.shape[1]
            last = size == pipe.release.tokenizer.config.coarse_size
            work = f"Upsampling with {upsampler}" if last else f"Drawing {_square(2 * size)}"
            yield Frame(
                coarse_title=_coarse_title(size, pipe.release.card),
                coarse=_enlarged(step, seeds),
                image_title=IMAGE_TITLE.format(""),
                images=None,
                status=f"{work} …",
            )
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raise gr.Error(str(error)) from error


def example_captions() -> list[str]:
    """The lines of examples/captions.txt; none where the package is used without it."""
    return EXAMPLES.read_text().splitlines() if EXAMPLES.exists() else []


def _finished(checkpoint: str, result: GenerationResult) -> Iterator[Frame]:
    coarsest, coarse = result.partials[0].shape[1], result.coarse.shape[1]
    full = result.image.shape[1]
    seeds = ("seed " if len(result.seeds) == 1 else "seeds ") + ", ".join(map(str, result.seeds))
    facts = [] if result.captions[0] else ["no caption, so unconditional"]
    facts += [seeds, *(f"{name} {value:.2f} s" for name, value in result.seconds.items())]
    frame = Frame(
        coarse_title=_coarse_title(coarse, result.card),
        coarse=_enlarged(result.coarse, result.seeds),
        image_title=IMAGE_TITLE.format(_square(full)),
        images=_labelled(result.image, result.seeds),
        status=" · ".join(facts),
    )
    yield frame
    with TemporaryDirectory(prefix="dpwg-") as folder:
        yield frame._replace(
            bands_text=f"Details of fewer than {_square(coarse)} pixels follow the coarse picture; "
            "the larger ones are the public upsampler's invention.",
            bands=bands_figure(result.image[0] / 255.0, levels=(full // coarsest).bit_length() - 1),
            files=_write(Path(folder), checkpoint, result),
        )


def _write(folder: Path, checkpoint: str, result: GenerationResult) -> list[str]:
    """The pictures in their own size and result.json."""
    files = []
    for seed, coarse, image in zip(result.seeds, result.coarse, result.image, strict=True):
        for name, picture in ((f"seed-{seed}-coarse.png", coarse), (f"seed-{seed}.png", image)):
            Image.fromarray(picture).save(folder / name)
            files.append(str(folder / name))
    facts = folder / "result.json"
    answer = {"checkpoint": checkpoint, **result.to_json()}
    facts.write_text(json.dumps(answer, indent=2) + "\n")
    return [*files, str(facts)]


def _labelled(images_BHWC: np.ndarray, seeds: Sequence[int]) -> Pictures:
    labels = [f"seed {seed}" for seed in seeds] if len(seeds) > 1 else [None]
    return list(zip(images_BHWC, labels, strict=True))


def _enlarged(images_BHWC: np.ndarray, seeds: Sequence[int]) -> Pictures:
    """Every pixel as a square, so that no browser smooths it."""
    times = max(SHOWN_PIXELS // images_BHWC.shape[1], 1)
    return _labelled(images_BHWC.repeat(times, axis=1).repeat(times, axis=2), seeds)


def _square(size: int) -> str:
    return f"{size}×{size}"


def _coarse_title(size: int, card: PrivacyCard) -> str:
    if card.epsilon is None:
        author = "model trained without privacy"
    elif card.epsilon == 0:
        author = "public model, ε = 0"
    else:
        author = f"private model, ε = {card.epsilon:.4g}"
    return f"### Coarse {_square(size)}\n*{author}*"


def build_generate() -> None:
    """Add the page to the Blocks around it. Reads the checkpoints' names and loads none."""
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
    if lines := example_captions():
        gr.Examples(
            [[line] for line in lines],
            inputs=caption,
            examples_per_page=len(lines),
            elem_id="examples",
            api_visibility="private",
        )
    with gr.Row(elem_classes="page"):
        with gr.Column(elem_classes="settings"):
            checkpoint, promise, settings = _build_settings(names)
        with gr.Column(elem_classes="results"):
            pictures = _build_pictures()
        with gr.Column(elem_classes="extras"):
            extras = _build_extras()
            with gr.Accordion("Privacy card of the chosen checkpoint", open=False):
                card = gr.Markdown(elem_classes="card")
    gr.on(  # without triggers: when the page loads and when the checkpoint changes
        fn=describe_checkpoint,
        inputs=checkpoint,
        outputs=[promise, card],
        api_name="describe_checkpoint",
    )
    gr.on(
        [button.click, caption.submit],
        generate,
        inputs=[checkpoint, caption, *settings],
        outputs=[*pictures, *extras],
        api_name="generate",
        concurrency_limit=1,
        scroll_to_output=True,
        show_progress_on=pictures[1],
    )


def _build_settings(names: Sequence[str]) -> tuple[Component, Component, list[Component]]:
    """The checkpoint, what it promises, and the rest of `generate`'s inputs after the caption."""
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
    dice.click(random_seed, outputs=seed, api_name="random_seed")
    upsampler.change(
        lambda name: gr.Dropdown(info=describe_upsampler(name)),
        upsampler,
        upsampler,
        api_visibility="private",
    )
    return checkpoint, promise, [seed, count, guidance, temperature, upsampler]


def _build_pictures() -> list[Component]:
    """The first outputs of `generate`, up to the status."""
    shown: list[Component] = []
    with gr.Row():
        for name, title in (
            ("coarse", "### Coarse\n*chosen checkpoint*"),
            ("images", IMAGE_TITLE.format("")),
        ):
            with gr.Column(min_width=280):
                shown.append(gr.Markdown(title, elem_classes="title"))
                shown.append(
                    gr.Gallery(
                        show_label=False,
                        format="png",
                        interactive=False,
                        buttons=["fullscreen", "download"],
                        elem_id=name,
                        elem_classes="pictures",
                    )
                )
    return [*shown, gr.Markdown("Write a caption and press Generate.", elem_classes="status")]


def _build_extras() -> list[Component]:
    """The last outputs of `generate`: what the bands are, the bands, the files."""
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
    with gr.Accordion("Files to download", open=False):
        files = gr.Files(show_label=False, interactive=False)
    return [bands_text, bands, files]
