"""`tokenizer`, `upsampler`, `pretrain` and `reranker`: the parts trained on public data."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from dpwg.cli.console import kept, run_training
from dpwg.cli.options import (
    Verb,
    checkpointing_option,
    data_options,
    device_option,
    encode_examples,
    is_public_mix,
    new_or_resumed,
    precision_option,
    preset_option,
    read_public_records,
    read_settings,
    refuse_all_but,
)

if TYPE_CHECKING:
    from torch import Tensor

    from dpwg.data import Records
    from dpwg.method.captions import TextEncoder
    from dpwg.method.tokenizer import SpectralTokenizer
    from dpwg.release.folder import Release
    from dpwg.training.examples import Examples
    from dpwg.training.presets import Preset
    from dpwg.training.processes import Ranks

PUBLIC_HELP = "declare that nothing in a folder given as --data is sensitive"
TEXT_ENCODER_HELP = (
    "a CLIP, T5 or BERT of the hub, as user/name or user/name@revision, or a folder; the preset's "
    "by default; any but the embedded one needs --public"
)


def evaluate_options(command: argparse.ArgumentParser) -> None:
    """To measure what is there."""
    command.add_argument(
        "--evaluate", metavar="SET", help="train nothing; measure what is in --out on this set"
    )
    command.add_argument("--results", type=Path, help="write the measurement to this file")


def add_tokenizer(verb: Verb) -> None:
    command = verb("tokenizer", _tokenizer, "train the spectral tokenizer on public images")
    data_options(command, "public-train")
    command.add_argument("--public", action="store_true", help=PUBLIC_HELP)
    preset_option(command)
    command.add_argument("--codebook-sizes", type=int, nargs="+", help="of each scale")
    command.add_argument("--steps", type=int, help="optimizer steps")
    command.add_argument("--batch", type=int, help="images a step")
    command.add_argument("--seed", type=int, default=0)
    device_option(command)
    command.add_argument("--out", type=Path, help="folder; checkpoints/tokenizer by default")
    evaluate_options(command)


def _tokenizer(options: argparse.Namespace) -> Any:
    import torch

    from dpwg.config import TokenizerConfig
    from dpwg.data import open_records
    from dpwg.measure.quality import tokenizer_quality
    from dpwg.method.predictive import new_tokenizer
    from dpwg.modules import check_module_folder, checkpoint_root
    from dpwg.release.folder import load_tokenizer, save_tokenizer
    from dpwg.training.examples import coarse_batches
    from dpwg.training.presets import get_preset
    from dpwg.training.processes import Ranks
    from dpwg.training.tokenizer import TokenizerTraining, train_tokenizer

    folder = options.out or checkpoint_root() / "tokenizer"
    if options.evaluate:
        refuse_all_but(options, "evaluate", "out", "count", "results", beside="--evaluate")
        records = open_records(options.evaluate, count=options.count)
        quality = tokenizer_quality(load_tokenizer(folder), records)
        return kept({"data": options.evaluate, **quality.to_json()}, options.results)
    preset = get_preset(options.preset)
    sizes = tuple(options.codebook_sizes or preset.tokenizer.codebook_sizes)
    settings = read_settings(TokenizerTraining, options, preset.tokenizer_training)
    ranks = Ranks.from_environment(options.device)
    check_module_folder(folder, TokenizerConfig)
    records = read_public_records(options)
    torch.manual_seed(options.seed)
    tokenizer = new_tokenizer(replace(preset.tokenizer, codebook_sizes=sizes))
    size = tokenizer.config.coarse_size
    images_NCHW = torch.cat(list(tqdm(coarse_batches(records, size), desc="coarse images")))
    run_training(train_tokenizer(tokenizer, images_NCHW, settings, ranks), "tokenizer", ranks)
    if not ranks.leads:
        return None
    save_tokenizer(folder, tokenizer.cpu())
    return {"folder": str(folder), "steps": settings.steps}


def add_upsampler(verb: Verb) -> None:
    command = verb("upsampler", _upsampler, "train the super-resolution model on public images")
    data_options(command, "public-train")
    command.add_argument("--public", action="store_true", help=PUBLIC_HELP)
    preset_option(command)
    command.add_argument("--tokenizer", type=Path, help="checkpoints/tokenizer by default")
    command.add_argument("--steps", type=int)
    command.add_argument("--seed", type=int, default=0)
    device_option(command)
    command.add_argument("--out", type=Path, help="folder; checkpoints/upsampler by default")
    evaluate_options(command)


def _upsampler(options: argparse.Namespace) -> Any:
    import numpy as np
    import torch

    from dpwg.config import SuperResolutionConfig
    from dpwg.data import open_records
    from dpwg.measure.quality import upsampler_quality
    from dpwg.modules import check_module_folder, checkpoint_root
    from dpwg.release.folder import load_tokenizer
    from dpwg.training.presets import get_preset
    from dpwg.training.processes import Ranks
    from dpwg.training.upsampler import SuperResolutionTraining, train_superresolution
    from dpwg.upsampling.superresolution import UPSAMPLER, SuperResolution, save_superresolution
    from dpwg.upsampling.upsamplers import embedded_upsamplers

    folder = options.out or checkpoint_root() / UPSAMPLER
    tokenizer = load_tokenizer(options.tokenizer or checkpoint_root() / "tokenizer")
    if options.evaluate:
        used = ("evaluate", "out", "tokenizer", "count", "results")
        refuse_all_but(options, *used, beside="--evaluate")
        records = open_records(options.evaluate)
        rows = [
            upsampler_quality(upsampler, tokenizer, records, options.count or 500)
            for upsampler in tqdm(embedded_upsamplers(folder), desc="upsamplers")
        ]
        answer = {"data": options.evaluate, "upsamplers": [row.to_json() for row in rows]}
        return kept(answer, options.results)
    preset = get_preset(options.preset)
    settings = read_settings(SuperResolutionTraining, options, preset.superresolution_training)
    ranks = Ranks.from_environment(options.device)
    check_module_folder(folder, SuperResolutionConfig)
    records = read_public_records(options)
    torch.manual_seed(options.seed)
    coarse_size = tokenizer.config.coarse_size
    model = SuperResolution(replace(preset.superresolution, coarse_size=coarse_size))
    size = coarse_size << model.config.levels
    images_NHWC = np.empty((min(settings.images, len(records)), size, size, 3), np.uint8)
    for index in tqdm(range(len(images_NHWC)), desc="images"):
        images_NHWC[index] = records[index].image(size)
    images_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)
    run_training(
        train_superresolution(model, tokenizer, images_NCHW, settings, ranks), "upsampler", ranks
    )
    if not ranks.leads:
        return None
    save_superresolution(folder, model.cpu())
    return {"folder": str(folder), "steps": settings.steps}


def add_pretrain(verb: Verb) -> None:
    command = verb("pretrain", _pretrain, "train WaveletGPT on public images and captions")
    data_options(command, "public-train")
    command.add_argument("--public", action="store_true", help=f"{PUBLIC_HELP}; or --text-encoder")
    preset_option(command)
    command.add_argument(
        "--tokenizer",
        type=Path,
        help="a folder, declared public by being named; checkpoints/tokenizer by default",
    )
    command.add_argument("--text-encoder", metavar="NAME_OR_FOLDER", help=TEXT_ENCODER_HELP)
    command.add_argument("--base", help="public checkpoint to start from, with its text encoder")
    command.add_argument("--steps", type=int)
    command.add_argument("--batch", type=int, help="examples a step")
    command.add_argument("--learning-rate", type=float)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--delta", type=float, default=1e-5)
    device_option(command)
    precision_option(command)
    checkpointing_option(command)
    command.add_argument("--compile", action="store_true", help="with torch.compile: for GPUs")
    command.add_argument("--run-folder", type=Path, default=Path("runs/pretrain"))
    command.add_argument("--resume", action="store_true", help="go on with the run folder")
    command.add_argument(
        "--out", type=Path, help="release folder; faces/public of the checkpoints by default"
    )


def _pretrain(options: argparse.Namespace) -> Any:
    import torch

    from dpwg.modules import checkpoint_root, module_sha256
    from dpwg.privacy.accounting import Ledger
    from dpwg.privacy.card import PrivacyCard
    from dpwg.release.folder import (
        Release,
        check_release_folder,
        check_same_tokenizer,
        load_public,
        load_tokenizer,
        save_release,
    )
    from dpwg.release.provenance import public_inputs
    from dpwg.training.presets import get_preset
    from dpwg.training.processes import Ranks
    from dpwg.training.public_model import Pretraining, pretrain

    preset = get_preset(options.preset)
    ranks = Ranks.from_environment(options.device)
    tokenizer_folder = options.tokenizer or checkpoint_root() / "tokenizer"
    out = options.out or checkpoint_root() / "faces" / "public"
    check_release_folder(out)
    tokenizer = load_tokenizer(tokenizer_folder)
    base = load_public(options.base) if options.base else None
    if base is not None:
        check_same_tokenizer(tokenizer_folder, base.tokenizer)
    encoder = _encoder(options, preset, base)
    torch.manual_seed(options.seed)
    model = preset.new_model(tokenizer, encoder)
    if base is not None:
        model.load_state_dict(base.model.state_dict())
    model.checkpointing = options.checkpointing
    settings = read_settings(Pretraining, options, preset.pretraining)
    folder = new_or_resumed(options.run_folder, resume=options.resume)
    records = read_public_records(options)
    examples = encode_examples(records, tokenizer, encoder, ranks)
    steps = pretrain(model, examples, settings, folder, ranks, compiled=options.compile)
    run_training(steps, "pretraining", ranks)
    if not ranks.leads:
        return None
    text_encoder = encoder.id if base is None else base.text_encoder
    digest = module_sha256(tokenizer_folder)
    inputs = public_inputs(
        records.name, len(records), text_encoder, digest, rendered=is_public_mix(options.data)
    )
    before = () if base is None else base.card.public_inputs
    card = PrivacyCard.from_ledger(
        Ledger(),
        delta=options.delta,
        dataset="none: public data only",
        records=0,
        max_grad_norm=None,
        public_inputs=(*inputs, *(item for item in before if item not in inputs)),
        target_epsilon=0.0,
    )
    release = Release(model=model.cpu(), tokenizer=tokenizer, card=card, text_encoder=text_encoder)
    save_release(out, release, tokenizer_folder=tokenizer_folder)
    return {"folder": str(out), "steps": settings.steps, "text_encoder": text_encoder.name}


def add_reranker(verb: Verb) -> None:
    command = verb(
        "reranker", _reranker, "train the reranker of captions and coarsest bands on public images"
    )
    data_options(command, "public-more")
    command.add_argument("--public", action="store_true", help=f"{PUBLIC_HELP}; or --text-encoder")
    preset_option(command)
    command.add_argument("--tokenizer", type=Path, help="checkpoints/tokenizer by default")
    command.add_argument("--text-encoder", metavar="NAME_OR_FOLDER", help=TEXT_ENCODER_HELP)
    command.add_argument("--steps", type=int)
    command.add_argument("--batch", type=int, help="examples a step")
    command.add_argument("--group", type=int, help="similar captions that a batch holds together")
    command.add_argument("--learning-rate", type=float)
    command.add_argument("--seed", type=int, default=0)
    device_option(command)
    precision_option(command)
    command.add_argument("--out", type=Path, help="folder; checkpoints/reranker by default")
    evaluate_options(command)


def _reranker(options: argparse.Namespace) -> Any:
    import torch

    from dpwg.config import RerankerConfig
    from dpwg.method.reranker import Reranker
    from dpwg.modules import check_module_folder, checkpoint_root
    from dpwg.release.folder import RERANKER, load_tokenizer, reranker_reads, save_reranker
    from dpwg.release.provenance import reranker_input
    from dpwg.training.presets import get_preset
    from dpwg.training.processes import Ranks
    from dpwg.training.reranker import RerankerTraining, check_sizes, train_reranker

    folder = options.out or checkpoint_root() / RERANKER
    tokenizer = load_tokenizer(options.tokenizer or checkpoint_root() / "tokenizer")
    encoder = _encoder(options, get_preset(options.preset), None)
    reads = reranker_reads(tokenizer, encoder.digest, encoder.max_tokens)
    if options.evaluate:
        return _evaluate_reranker(options, folder, tokenizer, encoder, reads)
    settings = read_settings(RerankerTraining, options)
    ranks = Ranks.from_environment(options.device)
    check_module_folder(folder, RerankerConfig)
    records = read_public_records(options)
    check_sizes(settings, len(records), ranks.world)
    size = tokenizer.config.image_size(0)
    config = RerankerConfig(
        **reads, text_width=encoder.width, image_size=size, patch=max(1, size // 4)
    )
    torch.manual_seed(options.seed)
    model = Reranker(config)
    pairs = _matched(records, tokenizer, encoder, ranks)
    run_training(train_reranker(model, *pairs, settings, ranks), "reranker", ranks)
    if not ranks.leads:
        return None
    rendered = is_public_mix(options.data)
    save_reranker(
        folder, model.cpu(), reranker_input(records.name, len(records), rendered=rendered)
    )
    return {"folder": str(folder), "steps": settings.steps}


def _evaluate_reranker(
    options: argparse.Namespace,
    folder: Path,
    tokenizer: SpectralTokenizer,
    encoder: TextEncoder,
    reads: dict[str, Any],
) -> Any:
    from dpwg.data import open_records
    from dpwg.measure.quality import reranker_quality
    from dpwg.release.folder import load_reranker

    used = ("evaluate", "out", "tokenizer", "text_encoder", "preset", "public", "count", "results")
    refuse_all_but(options, *used, beside="--evaluate")
    reranker = load_reranker(folder).model
    for name, own in reads.items():
        if (found := getattr(reranker.config, name)) != own:
            raise ValueError(
                f"Expected the reranker in {folder} to have {name}={own!r:.20}, found "
                f"{found!r:.20}; name the tokenizer and text encoder that it was trained with."
            )
    records = open_records(options.evaluate, count=options.count)
    quality = reranker_quality(reranker, *_matched(records, tokenizer, encoder))
    return kept({"data": records.name, **quality.to_json()}, options.results)


def _matched(
    records: Records,
    tokenizer: SpectralTokenizer,
    encoder: TextEncoder,
    ranks: Ranks | None = None,
) -> tuple[Tensor, Examples, list[str]]:
    """A set's coarsest images, its examples, and its first captions in words."""
    import torch

    from dpwg.training.reranker import coarsest_images

    examples = encode_examples(records, tokenizer, encoder, ranks)
    captions = [records[index].captions[0] for index in tqdm(range(len(records)), desc="captions")]
    parts = tqdm(coarsest_images(tokenizer, examples), desc="coarsest images", unit="part")
    return torch.cat(list(parts)), examples, captions


def _encoder(options: argparse.Namespace, preset: Preset, base: Release | None) -> TextEncoder:
    """The text encoder of the base, or the one that is asked for.

    Any but MiniLM may have been trained on anything, a repository of the user's own too: its user
    declares it public, as the card then says.
    """
    from dpwg.config import MINILM
    from dpwg.method.encoders import find_encoder, open_encoder

    if base is not None:
        if options.text_encoder:
            raise ValueError(
                f"Expected no text-encoder={options.text_encoder!r} with --base: a model reads "
                "captions as it began to."
            )
        return open_encoder(base.text_encoder)
    name = options.text_encoder or preset.text_encoder
    tokens = None if options.text_encoder else preset.model.text_tokens
    if name != MINILM and not options.public:
        raise ValueError(
            f"Expected --public with the text encoder {name!r}, which is not the embedded "
            f"{MINILM}: it must have seen nothing that is sensitive, neither images nor captions."
        )
    return find_encoder(name, max_tokens=tokens)
