"""A picture of captions by checkpoints, for the documentation.

    python -m scripts.sheet docs/sheet.png --captions examples/sheet.txt \\
        --checkpoints faces/public faces/eps-1 faces/eps-3 faces/eps-10 faces/eps-inf
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont

from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.method.sampling import Sampling


def sheet(
    checkpoints: Sequence[str], captions: Sequence[str], *, seed: int, settings: Sampling
) -> Image.Image:
    """A picture of captions (rows) by checkpoints (columns), all from one seed."""
    cell, margin, left, top = 128, 8, 330, 40
    width = left + len(checkpoints) * (cell + margin)
    height = top + len(captions) * (cell + margin)
    picture = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=15)
    for column, name in enumerate(checkpoints):
        pipeline = DPWaveletPipeline.from_pretrained(name)
        x = left + column * (cell + margin)
        draw.text((x, 12), name.rpartition("/")[2], "black", font)
        result = pipeline(captions, seed=[seed] * len(captions), settings=settings)
        for row, image in enumerate(result.image):
            picture.paste(Image.fromarray(np.asarray(image)), (x, top + row * (cell + margin)))
    for row, caption in enumerate(captions):
        lines = _wrapped(caption, font, left - 2 * margin)
        draw.multiline_text((margin, top + row * (cell + margin)), lines, "black", font)
    return picture


def _wrapped(text: str, font: Any, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def main(
    out: tyro.conf.Positional[Path],
    /,
    *,
    captions: Path,
    checkpoints: tuple[str, ...],
    seed: int = 0,
    settings: Sampling = Sampling(),
) -> None:
    """Draw every caption of a file under every checkpoint, all from one seed."""
    lines = captions.read_text().splitlines()
    sheet(checkpoints, lines, seed=seed, settings=settings).save(out)


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
