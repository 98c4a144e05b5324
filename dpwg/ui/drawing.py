"""A drawing for the Generate tab: shown scale by scale as the model draws it, then as files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image

from dpwg.method.pipeline import GenerationResult
from dpwg.method.sampling import Sampling
from dpwg.ui.own import YOURS, loader
from dpwg.ui.parts import in_words
from dpwg.ui.pictures import Moment, Pictures, enlarged, square, watch
from dpwg.ui.pipelines import draw
from dpwg.ui.promises import author
from dpwg.ui.runs import Run
from dpwg.ui.sharing import Drawing, to_query
from dpwg.ui.shown import Shown

COARSE_TITLE = "### Coarse {}\n*{}*"
IMAGE_TITLE = "### Image {}\n*public upsampler*"


class Frame(NamedTuple):
    """What the page shows at one moment, in the order of its components."""

    coarse_title: str
    coarse: Pictures
    image_title: str
    images: Pictures | None
    status: str
    swipe: tuple[np.ndarray, np.ndarray] | None = None
    authors: str = ""
    files: list[str] | None = None
    shown: Shown | None = None


def generate(
    checkpoint: str,
    caption: str,
    seed: int,
    count: int,
    guidance: float,
    temperature: float,
    upsampler: str,
    candidates: int = Sampling.candidates,
    own: Run | None = None,
) -> Iterator[Frame]:
    """Frames of `count` images with seeds from `seed`: one a scale, some of an upsampler that works
    in steps, then the pictures and all the rest.

    An empty caption draws unconditionally; the checkpoint `YOURS` is the visitor's `own`. The files
    of a frame live until the last one is left.
    """
    with in_words(), TemporaryDirectory(prefix="dpwg-") as name:
        drawing = Drawing(
            checkpoint, caption, seed, count, guidance, temperature, upsampler, candidates
        )
        load, seeds, folder = loader(checkpoint, own), drawing.seeds, Path(name)
        card = load().release.card
        steps = draw(
            load,
            (drawing.caption,) * len(seeds),
            seed=seeds,
            settings=drawing.sampling,
            upsampler=upsampler,
        )
        for moment in watch(steps, folder, _labels(seeds), upsampler):
            if moment.result is None:
                title = COARSE_TITLE.format(square(moment.size), author(card))
                yield Frame(title, moment.coarse, IMAGE_TITLE.format(""), None, moment.doing)
            else:
                yield _finished(folder, drawing, moment, moment.result)


def swiped(shown: Shown | None, place: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Coarse and upsampled picture number `place` of the last generation, in one size."""
    if shown is None or not 0 <= place < len(shown.image):
        return None
    return enlarged(shown.coarse[place : place + 1])[0], enlarged(shown.image[place : place + 1])[0]


def _finished(folder: Path, drawing: Drawing, moment: Moment, result: GenerationResult) -> Frame:
    coarse, full = square(moment.size), square(result.image.shape[1])
    seeds = ("seed " if len(result.seeds) == 1 else "seeds ") + ", ".join(map(str, result.seeds))
    facts = [] if result.captions[0] else ["no caption"]
    facts += [seeds, *(f"{name} {value:.2f} s" for name, value in result.seconds.items())]
    if drawing.checkpoint != YOURS:  # which no other page can open
        drawn = replace(drawing, candidates=result.candidates)
        facts += [f"[link to this drawing]({to_query(drawn)})"]
    title = f"{drawing.checkpoint}, {seeds}"
    shown = Shown(drawing.checkpoint, result.coarse, result.image, title)
    return Frame(
        coarse_title=COARSE_TITLE.format(coarse, author(result.card)),
        coarse=moment.coarse,
        image_title=IMAGE_TITLE.format(full),
        images=moment.images,
        status=" · ".join(facts),
        swipe=swiped(shown, 0),
        authors=f"The {author(result.card)} decided what you see at {coarse}. {_choice(result)}"
        f"The public upsampler {drawing.upsampler} invented all finer detail, up to {full}, from "
        "the coarse picture (and the caption, if it reads captions). ε says nothing about what a "
        "public model already knew.",
        files=_write(folder, drawing.checkpoint, result),
        shown=shown,
    )


def _choice(result: GenerationResult) -> str:
    """That candidates were chosen among, where they were."""
    if result.reranker is None:
        return ""
    size, each = square(result.partials[0].shape[1]), len(result.seeds) > 1
    return (
        f"A public reranker ({result.reranker.public_input['source']}) picked the best of "
        f"{result.candidates} candidates at {size}{' for each picture' if each else ''}. "
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


def _labels(seeds: Sequence[int]) -> list[str | None]:
    return [f"seed {seed}" for seed in seeds] if len(seeds) > 1 else [None]
