"""`tokenizer`, `upsampler` and `pretrain`: the parts that are trained on public data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dpwg.cli.console import kept, run_training
from dpwg.cli.options import (
    Verb,
    data_options,
    encode_examples,
    new_or_resumed,
    read_public_records,
    read_settings,
)

PUBLIC_HELP = "declare that nothing in a folder given as --data is sensitive"


def add_tokenizer(verb: Verb) -> None:
    command = verb("tokenizer", _tokenizer, "train the spectral tokenizer on public images")
    data_options(command, "public-train")
    command.add_argument("--public", action="store_true", help=PUBLIC_HELP)
    command.add_argument("--codebook-sizes", type=int, nargs="+", default=[1024, 1024, 1024])
    command.add_argument("--steps", type=int, help="optimizer steps")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", type=Path, help="folder; checkpoints/tokenizer by default")
    command.add_argument("--evaluate", metavar="SET", help="measure PSNR on a set instead")
    command.add_argument("--results", type=Path, help="write the measurement to this file")


def _tokenizer(options: argparse.Namespace) -> Any:
    import torch

    from dpwg.checkpoint import checkpoint_root, load_tokenizer, save_tokenizer
    from dpwg.config import TokenizerConfig
    from dpwg.data import open_records
    from dpwg.data.tensors import coarse_batches
    from dpwg.evaluate import tokenizer_quality
    from dpwg.tokenizer import SpectralTokenizer
    from dpwg.training.ranks import Ranks
    from dpwg.training.tokenizer import TokenizerTraining, train_tokenizer

    folder = options.out or checkpoint_root() / "tokenizer"
    if options.evaluate:
        quality = tokenizer_quality(load_tokenizer(folder), open_records(options.evaluate))
        return kept({"data": options.evaluate, **quality.to_json()}, options.results)
    records = read_public_records(options)
    torch.manual_seed(options.seed)
    tokenizer = SpectralTokenizer(TokenizerConfig(codebook_sizes=tuple(options.codebook_sizes)))
    size = tokenizer.config.coarse_size
    images_NCHW = torch.cat(list(tqdm(coarse_batches(records, size), desc="coarse images")))
    settings = read_settings(TokenizerTraining, options)
    ranks = Ranks.from_environment()
    run_training(train_tokenizer(tokenizer, images_NCHW, settings, ranks), "tokenizer", ranks)
    if not ranks.leads:
        return None
    save_tokenizer(folder, tokenizer.cpu())
    return {"folder": str(folder), "steps": settings.steps}


def add_upsampler(verb: Verb) -> None:
    command = verb("upsampler", _upsampler, "train the super-resolution model on public images")
    data_options(command, "public-train")
    command.add_argument("--public", action="store_true", help=PUBLIC_HELP)
    command.add_argument("--tokenizer", type=Path, help="checkpoints/tokenizer by default")
    command.add_argument("--steps", type=int)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", type=Path, help="folder; checkpoints/upsampler by default")
    command.add_argument("--evaluate", metavar="SET", help="compare all upsamplers on a set")
    command.add_argument("--results", type=Path, help="write the measurement to this file")


def _upsampler(options: argparse.Namespace) -> Any:
    import numpy as np
    import torch

    from dpwg.checkpoint import (
        UPSAMPLER,
        checkpoint_root,
        load_tokenizer,
        save_superresolution,
    )
    from dpwg.config import SuperResolutionConfig
    from dpwg.data import open_records
    from dpwg.evaluate import upsampler_quality
    from dpwg.superresolution import SuperResolution
    from dpwg.training.ranks import Ranks
    from dpwg.training.superresolution import SuperResolutionTraining, train_superresolution
    from dpwg.upsample import UPSAMPLERS, get_upsampler

    tokenizer = load_tokenizer(options.tokenizer or checkpoint_root() / "tokenizer")
    if options.evaluate:
        records = open_records(options.evaluate)
        rows = [
            upsampler_quality(get_upsampler(name), tokenizer, records, options.count or 500)
            for name, _ in tqdm(UPSAMPLERS, desc="upsamplers")
        ]
        answer = {"data": options.evaluate, "upsamplers": [row.to_json() for row in rows]}
        return kept(answer, options.results)
    records = read_public_records(options)
    torch.manual_seed(options.seed)
    model = SuperResolution(SuperResolutionConfig(coarse_size=tokenizer.config.coarse_size))
    size = model.config.coarse_size << model.config.levels
    settings = read_settings(SuperResolutionTraining, options)
    images_NHWC = np.empty((min(settings.images, len(records)), size, size, 3), np.uint8)
    for index in tqdm(range(len(images_NHWC)), desc="images"):
        images_NHWC[index] = records[index].image(size)
    images_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)
    ranks = Ranks.from_environment()
    run_training(
        train_superresolution(model, tokenizer, images_NCHW, settings, ranks), "upsampler", ranks
    )
    if not ranks.leads:
        return None
    folder = options.out or checkpoint_root() / UPSAMPLER
    save_superresolution(folder, model.cpu())
    return {"folder": str(folder), "steps": settings.steps}


def add_pretrain(verb: Verb) -> None:
    command = verb("pretrain", _pretrain, "train WaveletGPT on public images and captions")
    data_options(command, "public-train")
    command.add_argument("--public", action="store_true", help=PUBLIC_HELP)
    command.add_argument("--tokenizer", type=Path, help="checkpoints/tokenizer by default")
    command.add_argument("--base", help="public checkpoint to start from")
    command.add_argument("--steps", type=int)
    command.add_argument("--batch", type=int, help="examples a step")
    command.add_argument("--learning-rate", type=float)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--delta", type=float, default=1e-5)
    command.add_argument("--run-folder", type=Path, default=Path("runs/pretrain"))
    command.add_argument("--resume", action="store_true", help="go on with the run folder")
    command.add_argument("--out", type=Path, default=Path("checkpoints/faces/public"))


def _pretrain(options: argparse.Namespace) -> Any:
    import torch

    from dpwg.checkpoint import (
        Release,
        checkpoint_root,
        load_public,
        load_tokenizer,
        save_release,
    )
    from dpwg.inputs import public_inputs
    from dpwg.model import WaveletGPT
    from dpwg.pipeline import default_encoder
    from dpwg.privacy.accounting import Ledger
    from dpwg.privacy.card import PrivacyCard
    from dpwg.training.pretrain import Pretraining, pretrain
    from dpwg.training.ranks import Ranks

    ranks = Ranks.from_environment()
    tokenizer_folder = options.tokenizer or checkpoint_root() / "tokenizer"
    tokenizer = load_tokenizer(tokenizer_folder)
    records = read_public_records(options)
    examples = encode_examples(records, tokenizer, ranks)
    torch.manual_seed(options.seed)
    model = WaveletGPT.for_tokenizer(tokenizer)
    if options.base:
        model.load_state_dict(load_public(options.base).model.state_dict())
    settings = read_settings(Pretraining, options)
    folder = new_or_resumed(options.run_folder, resume=options.resume)
    run_training(pretrain(model, examples, settings, folder, ranks), "pretraining", ranks)
    if not ranks.leads:
        return None
    card = PrivacyCard.from_ledger(
        Ledger(),
        delta=options.delta,
        dataset="none: public data only",
        records=0,
        max_grad_norm=None,
        public_inputs=public_inputs(records.name, len(records)),
        target_epsilon=0.0,
    )
    release = Release(
        model=model.cpu(), tokenizer=tokenizer, card=card, text_encoder=default_encoder().digest
    )
    save_release(options.out, release, tokenizer_folder=tokenizer_folder)
    return {"folder": str(options.out), "steps": settings.steps}
