"""A drawing: all that decides what is drawn, as a link and back, and drawn scale by scale."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
from PIL import Image

from dpwg.data.records import MAX_CAPTION_CHARACTERS
from dpwg.method.pipeline import MAX_SEED, GenerationResult
from dpwg.method.sampling import MAX_CANDIDATES, Sampling
from dpwg.release.folder import checkpoint_names
from dpwg.ui.families import suited_upsampler, usual_checkpoint
from dpwg.ui.limits import MAX_IMAGES, whole
from dpwg.ui.own import YOURS, Shown, author, loader
from dpwg.ui.parts import in_words
from dpwg.ui.pipelines import Moment, Pictures, draw, enlarged, square, watch
from dpwg.ui.runs import Run
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, chosen_upsampler

COARSE_TITLE = "### Coarse {}\n*{}*"
IMAGE_TITLE = "### Image {}\n*public upsampler*"
NUMBERS = ("seed", "count", "guidance", "temperature", "candidates")


@dataclass
class Drawing:
    """What is drawn, in the order of `generate`'s parameters; ValueError, in words, for what cannot
    be. Whether there is such a checkpoint is left to whoever loads it.
    """

    checkpoint: str
    caption: str
    seed: int = 0
    count: int = 1
    guidance: float = Sampling.guidance
    temperature: float = Sampling.temperature
    upsampler: str = DEFAULT_UPSAMPLER
    candidates: int = Sampling.candidates

    def __post_init__(self) -> None:
        self.caption = self.caption.strip()
        if len(self.caption) > MAX_CAPTION_CHARACTERS:
            raise ValueError(
                f"A caption has at most {MAX_CAPTION_CHARACTERS} characters, this one has "
                f"{len(self.caption)}; shorten it."
            )
        self.seed = whole("seed", self.seed, 0, MAX_SEED)
        self.count = whole("count", self.count, 1, MAX_IMAGES)
        self.candidates = whole("candidates", self.candidates, 1, MAX_CANDIDATES)
        _ = chosen_upsampler(self.upsampler), self.sampling

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each picture."""
        return tuple(range(self.seed, self.seed + self.count))

    @property
    def sampling(self) -> Sampling:
        """How its codes are drawn."""
        return Sampling(
            guidance=self.guidance, temperature=self.temperature, candidates=self.candidates
        )


def to_query(drawing: Drawing) -> str:
    """`?caption=…&seed=…&checkpoint=…`, and whatever else differs from its default, which of the
    upsampler is that of the checkpoint.
    """
    usual = {field.name: field.default for field in fields(Drawing)}
    usual |= {"upsampler": suited_upsampler(drawing.checkpoint), "seed": None}
    changed = {name: value for name, value in asdict(drawing).items() if value != usual[name]}
    return "?" + urlencode(changed, errors="replace")


def from_query(query: Mapping[str, str]) -> Drawing | None:
    """The inverse of `to_query`: None where nothing was asked for, ValueError where it is bad.

    A link needs a caption or a seed; what it leaves out is the page's own.
    """
    if not {"caption", "seed"} & set(query):
        return None
    names = checkpoint_names()
    checkpoint = query.get("checkpoint", usual_checkpoint(names) if names else "")
    try:
        if checkpoint not in names:
            raise ValueError(f"there is no checkpoint {checkpoint!r:.80} here.")
        numbers: dict[str, Any] = {n: float(query[n]) for n in NUMBERS if n in query}
        upsampler = query.get("upsampler", suited_upsampler(checkpoint))
        caption = query.get("caption", "")
        return Drawing(checkpoint=checkpoint, caption=caption, upsampler=upsampler, **numbers)
    except ValueError as error:
        raise ValueError(f"This link does not work: {error}") from None


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
        asked: dict[str, Any] = {"seed": seeds, "settings": drawing.sampling}
        steps = draw(load, (drawing.caption,) * len(seeds), upsampler=upsampler, **asked)
        labels = [f"seed {seed}" for seed in seeds] if len(seeds) > 1 else [None]
        for moment in watch(steps, folder, labels, upsampler):
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
    files = [folder / "result.json"]
    answer = {"checkpoint": checkpoint, **result.to_json()}
    files[0].write_text(json.dumps(answer, indent=2) + "\n")
    for seed, coarse, image in zip(result.seeds, result.coarse, result.image, strict=True):
        for name, picture in ((f"seed-{seed}-coarse.png", coarse), (f"seed-{seed}.png", image)):
            Image.fromarray(picture).save(folder / name)
            files.append(folder / name)
    return [str(file) for file in files]
