"""`sample`: pictures of a caption, or a data set of captions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from PIL import Image

from dpwg.cli.console import Bars
from dpwg.cli.options import Device
from dpwg.method.sampling import Sampling

if TYPE_CHECKING:
    from dpwg.method.pipeline import DPWaveletPipeline, GenerationResult
    from dpwg.upsampling.upsamplers import Upsampler

WHAT = tyro.conf.create_mutex_group(required=True)


def sample(
    *,
    out: Path,
    caption: Annotated[str | None, WHAT] = None,
    captions: Annotated[str | None, WHAT] = None,
    checkpoint: str = "faces/eps-10",
    revision: str | None = None,
    n: Annotated[int, tyro.conf.arg(aliases=["--per-caption"])] = 1,
    seed: int = 0,
    settings: Sampling = Sampling(),
    upsampler: str | None = None,
    device: Device = None,
    format: str | None = None,
    shard: str | None = None,
    batch: int | None = None,
    part: int | None = None,
    license: str | None = None,
    captions_are_public: bool = False,
) -> Any:
    """Generate images of a caption, or a data set of many captions.

    Args:
        out: the folder to write to
        caption: what to draw
        captions: a data set instead: a file with a caption a line, or public:N templates
        checkpoint: a release folder, the name of one in checkpoints/, or user/name on the hub
        revision: branch, tag or commit of a checkpoint on the hub
        n: images of each caption
        seed: the same seed gives the same images
        upsampler: one of the app's; or by diffusion: sd-x4:NAME follows the caption, ldm:NAME does
            not, NAME being a folder or user/name on the hub, and behind it what differs from the
            authors' own, as in sd-x4:NAME,steps=30,noise_level=20,guidance=9,revision=main
        format: of a data set: imagefolder (default), webdataset or parquet
        shard: of a data set, as i/n: draw the i-th of n shares, from 0
        batch: of a data set: images at a time
        part: of a data set: images in a folder, tar or Parquet file
        license: of a data set; the checkpoint's by default
        captions_are_public: declare that nothing in the captions is sensitive
    """
    from dpwg.data.prompts import read_captions
    from dpwg.device import pick_device
    from dpwg.method.pipeline import DPWaveletPipeline
    from dpwg.release.export import Export, captions_told, export_dataset, parse_shard, shard_images
    from dpwg.release.hub import usual_license
    from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, get_upsampler

    place = pick_device(device)
    pipeline = DPWaveletPipeline.from_pretrained(checkpoint, revision=revision)
    if pipeline.reranker is None and settings.candidates not in (Sampling.candidates, 1):
        raise ValueError(
            f"Expected no candidates={settings.candidates} with checkpoint={checkpoint!r}: nothing "
            "chooses among them. Leave it out, or train what does: `python -m dpwg reranker`."
        )
    pipeline.to(place)
    if caption is not None:
        drawn_by = upsampler or pipeline.release.upsampler or DEFAULT_UPSAMPLER
        result = _draw(pipeline, [caption] * n, out, seed, settings, get_upsampler(drawn_by))
        answer = {"checkpoint": checkpoint, **result.to_json()}
        (out / "result.json").write_text(json.dumps(answer, indent=2) + "\n")
        return answer
    assert captions is not None  # one of the two was given
    card, own = pipeline.release.card, parse_shard(shard or _rank() or "0/1")
    texts = read_captions(captions, private_set=card.dataset, public=captions_are_public)
    asked: dict[str, Any] = {
        "format": format,
        "batch": batch,
        "part": part,
        "license": license or usual_license(card),
        "upsampler": upsampler or pipeline.release.upsampler,
    }
    export = Export(
        captions=texts,
        captions_from=captions_told(captions, texts, public=captions_are_public),
        per_caption=n,
        seed=seed,
        sampling=settings,
        **{name: value for name, value in asked.items() if value is not None},
    )
    called = Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else checkpoint
    total = shard_images(export, own)
    done = export_dataset(pipeline, export, out, checkpoint=called, shard=own)
    Bars().run(done, total, f"drawing part {own[0]} of {own[1]}" if own[1] > 1 else "drawing")
    whole = (out / "README.md").exists()
    return {"folder": str(out), "images": total, "whole": whole, "epsilon": card.epsilon}


def _draw(
    pipeline: DPWaveletPipeline,
    captions: list[str],
    out: Path,
    seed: int,
    settings: Sampling,
    upsampler: Upsampler,
) -> GenerationResult:
    """Pictures of captions, in a folder in place of those of an earlier run."""
    from dpwg.measure.spectra import bands_figure
    from dpwg.method.pipeline import GenerationResult

    if not captions:
        raise ValueError("Expected --n of 1 or more.")
    out.mkdir(parents=True, exist_ok=True)
    bars = Bars()
    for stage in pipeline.stages(captions, seed=seed, settings=settings, upsampler=upsampler):
        if not isinstance(stage, GenerationResult) and not stage.private and stage.steps > 1:
            bars("upsampling", stage.step, stage.steps)
    assert isinstance(stage, GenerationResult)
    for kind in ("image-*.png", "coarse-*.png"):
        for old in out.glob(kind):
            old.unlink()
    for index, (coarse, image) in enumerate(zip(stage.coarse, stage.image, strict=True)):
        Image.fromarray(coarse).save(out / f"coarse-{index}.png")
        Image.fromarray(image).save(out / f"image-{index}.png")
    figure = bands_figure(stage.image[0] / 255.0, levels=len(stage.bands) - 1)
    figure.save(out / "bands.png")
    return stage


def _rank() -> str | None:
    """The shard of a process that `torchrun` started."""
    if "WORLD_SIZE" not in os.environ:
        return None
    return f"{os.environ['RANK']}/{os.environ['WORLD_SIZE']}"
