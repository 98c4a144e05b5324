"""`sample`, `push`, `space`, `list` and `account`: releases put to use, and privacy priced."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpwg.cli.console import progress_bar, run_counted
from dpwg.cli.options import (
    Verb,
    delta_option,
    device_option,
    read_delta,
    read_settings,
    refuse_unused,
    sampling_options,
)

if TYPE_CHECKING:
    from dpwg.method.pipeline import DPWaveletPipeline

UPSAMPLER_HELP = (
    "one of the app's, wavelet-sharp by default; or by diffusion: sd-x4:NAME follows the caption, "
    "ldm:NAME does not, NAME being a folder or user/name on the hub, and behind it what differs "
    "from the authors' own, as in sd-x4:NAME,steps=30,noise_level=20,guidance=9,revision=main"
)
UNBOUND_HELP = "publish without privacy too: nothing in the records is sensitive"


def add_sample(verb: Verb) -> None:
    command = verb("sample", _sample, "generate images of a caption, or a data set of captions")
    command.add_argument("--checkpoint", default="faces/eps-10")
    command.add_argument("--revision", help="branch, tag or commit of a checkpoint on the hub")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--caption")
    what.add_argument(
        "--captions", metavar="FILE", help="a data set: a file of lines, or public:N templates"
    )
    command.add_argument("--n", type=int, help="images of the caption, 1 by default")
    command.add_argument("--per-caption", type=int, help="images of each of the captions")
    command.add_argument("--format", help="imagefolder (default), webdataset or parquet")
    command.add_argument("--shard", metavar="i/n", help="draw the i-th of n shares, from 0")
    command.add_argument("--batch", type=int, help="images at a time")
    command.add_argument("--part", type=int, help="images in a folder, tar or Parquet file")
    command.add_argument("--license", help="licence of the data set (default: the checkpoint's)")
    command.add_argument(
        "--captions-are-public",
        action="store_true",
        help="declare that nothing in the captions is sensitive",
    )
    command.add_argument("--seed", type=int, default=0, help="0 by default: the same each time")
    sampling_options(command)
    device_option(command)
    command.add_argument("--upsampler", help=UPSAMPLER_HELP)
    command.add_argument("--out", type=Path, required=True)


def _sample(options: argparse.Namespace) -> Any:
    from PIL import Image

    from dpwg.measure.spectra import bands_figure
    from dpwg.method.pipeline import GenerationResult, Stage
    from dpwg.method.sampling import Sampling
    from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, PromptedUpsampler, get_upsampler

    if options.captions is not None:
        return _export(options)
    of_sets = ("per_caption", "format", "shard", "batch", "part", "license", "captions_are_public")
    refuse_unused(options, *of_sets, beside="--caption")
    count = 1 if options.n is None else options.n
    if count < 1:
        raise ValueError(f"Expected n={count} >= 1.")
    pipeline = _pipeline(options)
    suited = pipeline.release.upsampler or DEFAULT_UPSAMPLER
    upsampler = get_upsampler(options.upsampler or suited)
    stages = pipeline.stages(
        [options.caption] * count,
        seed=options.seed,
        settings=read_settings(Sampling, options),
        upsampler=upsampler,
    )
    in_steps = isinstance(upsampler, PromptedUpsampler)
    with progress_bar("upsampling") if in_steps else nullcontext() as told:
        for stage in stages:
            if told and isinstance(stage, Stage) and not stage.private:
                told(stage.step, stage.steps)
    assert isinstance(stage, GenerationResult)
    result = stage
    options.out.mkdir(parents=True, exist_ok=True)
    for index, (coarse, image) in enumerate(zip(result.coarse, result.image, strict=True)):
        Image.fromarray(coarse).save(options.out / f"coarse-{index}.png")
        Image.fromarray(image).save(options.out / f"image-{index}.png")
    bands_figure(result.image[0] / 255.0, levels=len(result.bands) - 1).save(
        options.out / "bands.png"
    )
    answer = {"checkpoint": options.checkpoint, **result.to_json()}
    (options.out / "result.json").write_text(json.dumps(answer, indent=2) + "\n")
    return answer


def _pipeline(options: argparse.Namespace) -> DPWaveletPipeline:
    from dpwg.device import pick_device
    from dpwg.method.pipeline import DPWaveletPipeline

    device = pick_device(options.device)
    pipeline = DPWaveletPipeline.from_pretrained(options.checkpoint, revision=options.revision)
    if pipeline.reranker is None and options.candidates not in (None, 1):
        raise ValueError(
            f"Expected no candidates={options.candidates} with checkpoint={options.checkpoint!r}: "
            "nothing chooses among them. Leave it out, or train one: `python -m dpwg reranker`."
        )
    return pipeline.to(device)


def _export(options: argparse.Namespace) -> Any:
    from dpwg.data.prompts import read_captions
    from dpwg.method.sampling import Sampling
    from dpwg.release.export import Export, captions_told, export_dataset, parse_shard, shard_images
    from dpwg.release.hub import usual_license

    if options.n is not None:
        raise ValueError(f"Expected no n={options.n} with --captions; pass --per-caption.")
    shard = parse_shard(options.shard or _rank() or "0/1")
    pipeline = _pipeline(options)
    public = options.captions_are_public
    captions = read_captions(
        options.captions, private_set=pipeline.release.card.dataset, public=public
    )
    told = captions_told(options.captions, captions, public=public)
    options.upsampler = options.upsampler or pipeline.release.upsampler
    options.license = options.license or usual_license(pipeline.release.card)
    export = read_settings(
        Export,
        options,
        captions=captions,
        captions_from=told,
        sampling=read_settings(Sampling, options),
    )
    is_folder = Path(options.checkpoint).is_dir()
    checkpoint = Path(options.checkpoint).resolve().name if is_folder else options.checkpoint
    total = shard_images(export, shard)
    done = export_dataset(pipeline, export, options.out, checkpoint=checkpoint, shard=shard)
    title = f"drawing part {shard[0]} of {shard[1]}" if shard[1] > 1 else "drawing"
    run_counted(done, total, title)
    return {
        "folder": str(options.out),
        "images": total,
        "whole": (options.out / "README.md").exists(),
        "epsilon": pipeline.release.card.epsilon,
    }


def _rank() -> str | None:
    """The shard of a process that `torchrun` started."""
    if "WORLD_SIZE" not in os.environ:
        return None
    return f"{os.environ['RANK']}/{os.environ['WORLD_SIZE']}"


def add_push(verb: Verb) -> None:
    command = verb(
        "push", _push, "publish a checkpoint with its model card on the Hugging Face Hub"
    )
    command.add_argument("checkpoint", help="a local checkpoint's name, or a release folder")
    command.add_argument("name", help="where to, as user/name")
    command.add_argument("--revision", help="branch; main by default")
    command.add_argument("--private", action="store_true", help="hide the repository from others")
    command.add_argument(
        "--license",
        help="of the weights, for the model card; apache-2.0, or other for research-only inputs",
    )
    command.add_argument("--without-bound", action="store_true", help=UNBOUND_HELP)


def _push(options: argparse.Namespace) -> Any:
    from dpwg.release.folder import load_release
    from dpwg.release.hub import push

    address = push(
        load_release(options.checkpoint),
        options.name,
        revision=options.revision,
        private=options.private,
        license=options.license,
        without_bound=options.without_bound,
    )
    return {"checkpoint": options.checkpoint, "commit": address}


def add_space(verb: Verb) -> None:
    command = verb("space", _space, "write the app as a folder for Hugging Face Spaces")
    command.add_argument("--out", type=Path, required=True, help="a new folder")
    command.add_argument("--checkpoints", nargs="+", default=[], help="all with a bound by default")
    command.add_argument("--without-bound", action="store_true", help=UNBOUND_HELP)


def _space(options: argparse.Namespace) -> Any:
    from dpwg.release.space import write_space

    files = write_space(options.out, options.checkpoints, without_bound=options.without_bound)
    return {"folder": str(options.out), "files": len(files), "bytes": sum(files.values())}


def add_list(verb: Verb) -> None:
    verb("list", _list, "show every checkpoint with its privacy figures")


def _list(options: argparse.Namespace) -> Any:
    from dpwg.release.folder import checkpoint_names, describe

    return [describe(name) for name in checkpoint_names()]


def add_account(verb: Verb) -> None:
    command = verb("account", _account, "answer with noise and epsilon, by PLD, PRV and RDP")
    command.add_argument("--records", type=int, required=True)
    command.add_argument("--batch", type=int, required=True)
    command.add_argument("--steps", type=int, required=True)
    delta_option(command)
    known = command.add_mutually_exclusive_group(required=True)
    known.add_argument("--epsilon", type=float)
    known.add_argument("--noise-multiplier", type=float)


def _account(options: argparse.Namespace) -> Any:
    from dpwg.privacy.accounting import PrivacyPlan

    sizes = {
        "records": options.records,
        "batch_size": options.batch,
        "steps": options.steps,
        "delta": read_delta(options, options.records),
        "max_grad_norm": 1.0,  # epsilon does not depend on it
    }
    if options.noise_multiplier is None:
        plan = PrivacyPlan.calibrated(**sizes, target_epsilon=options.epsilon)
    else:
        plan = PrivacyPlan(**sizes, noise_multiplier=options.noise_multiplier)
    spent = plan.epsilons()
    return {
        "sampling_rate": plan.sampling_rate,
        "steps": plan.steps,
        "delta": plan.delta,
        "records": plan.records,
        "batch": plan.batch_size,
        "noise_multiplier": plan.noise_multiplier,
        "epsilon": spent.pld,
        "epsilon_pld": spent.pld,
        "epsilon_prv": spent.prv,
        "epsilon_rdp": spent.rdp,
    }
