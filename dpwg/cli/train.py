"""`tokenizer`, `upsampler`, `pretrain` and `reranker`: the parts trained on public data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dpwg.cli.console import Bars, kept
from dpwg.cli.options import (
    EncoderName,
    Evaluate,
    Part,
    Results,
    TokenizerFolder,
    encode_examples,
    new_or_resumed,
)
from dpwg.data import open_records
from dpwg.modules import check_module_folder, checkpoint_root
from dpwg.release.shared import load_tokenizer
from dpwg.training.presets import get_preset
from dpwg.training.processes import Ranks
from dpwg.training.public_model import Pretraining
from dpwg.training.reranker import RerankerTraining
from dpwg.training.tokenizer import TokenizerTraining
from dpwg.training.upsampler import SuperResolutionTraining

if TYPE_CHECKING:
    from torch import Tensor

    from dpwg.data import Records
    from dpwg.method.captions import TextEncoder
    from dpwg.method.tokenizer import SpectralTokenizer
    from dpwg.release.folder import Release
    from dpwg.training.examples import Examples


def tokenizer(
    *,
    part: Part = Part(data="public-train"),
    codebook_sizes: tuple[int, ...] = (),
    settings: TokenizerTraining = TokenizerTraining(),
    evaluate: Evaluate = None,
    results: Results = None,
) -> Any:
    """Train the spectral tokenizer on public images.

    Args:
        codebook_sizes: of each scale; the preset's by default
    """
    from dpwg.config import TokenizerConfig
    from dpwg.measure.quality import tokenizer_quality
    from dpwg.method.predictive import new_tokenizer
    from dpwg.release.shared import save_tokenizer
    from dpwg.training.encodings import coarse_batches
    from dpwg.training.tokenizer import train_tokenizer

    folder = part.out or checkpoint_root() / "tokenizer"
    if evaluate:
        held_out = open_records(evaluate, count=part.count)
        quality = tokenizer_quality(load_tokenizer(folder), held_out)
        return kept({"data": evaluate, **quality.to_json()}, results)
    config = get_preset(part.preset).tokenizer
    ranks = Ranks.from_environment(part.device)
    bars = Bars(ranks)
    check_module_folder(folder, TokenizerConfig)
    public = part.records(bars)
    torch.manual_seed(settings.seed)
    model = new_tokenizer(replace(config, codebook_sizes=codebook_sizes or config.codebook_sizes))
    batches = []
    for batch in coarse_batches(public, model.config.coarse_size):
        batches.append(batch)
        bars("coarse images", sum(map(len, batches)), len(public))
    bars.train(train_tokenizer(model, torch.cat(batches), settings, ranks), "tokenizer")
    if not ranks.leads:
        return None
    save_tokenizer(folder, model.cpu())
    return {"folder": str(folder), "steps": settings.steps}


def upsampler(
    *,
    part: Part = Part(data="public-train"),
    tokenizer: TokenizerFolder = None,
    settings: SuperResolutionTraining = SuperResolutionTraining(),
    evaluate: Evaluate = None,
    results: Results = None,
) -> Any:
    """Train the super-resolution model on public images."""
    import numpy as np

    from dpwg.config import SuperResolutionConfig
    from dpwg.measure.quality import upsampler_quality
    from dpwg.training.upsampler import train_superresolution
    from dpwg.upsampling.superresolution import UPSAMPLER, SuperResolution, save_superresolution
    from dpwg.upsampling.upsamplers import embedded_upsamplers

    folder = part.out or checkpoint_root() / UPSAMPLER
    codes = load_tokenizer(tokenizer or checkpoint_root() / "tokenizer")
    ranks = Ranks.from_environment(part.device)
    bars = Bars(ranks)
    if evaluate:
        held_out, rows = open_records(evaluate), []
        for own in embedded_upsamplers(folder):
            bars(f"measuring {own.name}", 0, 1)
            rows.append(upsampler_quality(own, codes, held_out, part.count or 500).to_json())
        return kept({"data": evaluate, "upsamplers": rows}, results)
    check_module_folder(folder, SuperResolutionConfig)
    public = part.records(bars)
    torch.manual_seed(settings.seed)
    coarse = codes.config.coarse_size
    model = SuperResolution(replace(get_preset(part.preset).superresolution, coarse_size=coarse))
    size = coarse << model.config.levels
    images_NHWC = np.empty((min(settings.images, len(public)), size, size, 3), np.uint8)
    for index in range(len(images_NHWC)):
        images_NHWC[index] = public[index].image(size)
        bars("images", index + 1, len(images_NHWC))
    images_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)
    bars.train(train_superresolution(model, codes, images_NCHW, settings, ranks), "upsampler")
    if not ranks.leads:
        return None
    save_superresolution(folder, model.cpu())
    return {"folder": str(folder), "steps": settings.steps}


def pretrain(
    *,
    part: Part = Part(data="public-train"),
    tokenizer: TokenizerFolder = None,
    text_encoder: EncoderName = None,
    base: str | None = None,
    settings: Pretraining = Pretraining(),
    checkpointing: bool = False,
    compile: bool = False,
    delta: float = 1e-5,
    run_folder: Path = Path("runs/pretrain"),
    resume: bool = False,
) -> Any:
    """Train WaveletGPT on public images and captions.

    Args:
        base: public checkpoint to start from, with its text encoder
        checkpointing: compute activations again in the backward pass instead of keeping them
        compile: with torch.compile: for GPUs
        delta: of the card's promise
        run_folder: training state
        resume: go on with the run folder
    """
    from dpwg.modules import module_sha256
    from dpwg.privacy.accounting import Ledger
    from dpwg.privacy.card import PrivacyCard
    from dpwg.release.folder import Release, check_release_folder, load_public, save_release
    from dpwg.release.provenance import public_inputs
    from dpwg.release.shared import check_same_tokenizer
    from dpwg.training.public_model import pretrain as train_public

    ranks = Ranks.from_environment(part.device)
    bars, out = Bars(ranks), part.out or checkpoint_root() / "faces" / "public"
    check_release_folder(out)
    tokenizer = tokenizer or checkpoint_root() / "tokenizer"
    codes = load_tokenizer(tokenizer)
    start = load_public(base) if base else None
    if start is not None:
        check_same_tokenizer(tokenizer, start.tokenizer)
    encoder = _encoder(part, text_encoder, start)
    torch.manual_seed(settings.seed)
    model = get_preset(part.preset).new_model(codes, encoder)
    if start is not None:
        model.load_state_dict(start.model.state_dict())
    model.checkpointing = checkpointing
    folder = new_or_resumed(run_folder, resume=resume)
    public = part.records(bars)
    examples = encode_examples(public, codes, encoder, bars, ranks)
    steps = train_public(model, examples, settings, folder, ranks, compiled=compile)
    bars.train(steps, "pretraining")
    if not ranks.leads:
        return None
    told = encoder.id if start is None else start.text_encoder
    digest, rendered = module_sha256(tokenizer), part.rendered
    inputs = public_inputs(public.name, len(public), told, digest, rendered=rendered)
    before = () if start is None else start.card.public_inputs
    card = PrivacyCard.from_ledger(
        Ledger(),
        delta=delta,
        dataset="none: public data only",
        records=0,
        max_grad_norm=None,
        public_inputs=(*inputs, *(item for item in before if item not in inputs)),
        target_epsilon=0.0,
    )
    release = Release(model=model.cpu(), tokenizer=codes, card=card, text_encoder=told)
    save_release(out, release, tokenizer_folder=tokenizer)
    return {"folder": str(out), "steps": settings.steps, "text_encoder": told.name}


def reranker(
    *,
    part: Part = Part(data="public-more"),
    tokenizer: TokenizerFolder = None,
    text_encoder: EncoderName = None,
    settings: RerankerTraining = RerankerTraining(),
    evaluate: Evaluate = None,
    results: Results = None,
) -> Any:
    """Train the reranker of captions and coarsest bands, which chooses among candidates."""
    from dpwg.config import RerankerConfig
    from dpwg.measure.quality import reranker_quality
    from dpwg.method.reranker import Reranker
    from dpwg.release.provenance import reranker_input
    from dpwg.release.shared import RERANKER, load_reranker, reranker_reads, save_reranker
    from dpwg.training.reranker import check_sizes, train_reranker

    folder = part.out or checkpoint_root() / RERANKER
    codes = load_tokenizer(tokenizer or checkpoint_root() / "tokenizer")
    encoder = _encoder(part, text_encoder)
    reads = reranker_reads(codes, encoder.digest, encoder.max_tokens)
    ranks = Ranks.from_environment(part.device)
    bars = Bars(ranks)
    if evaluate:
        model = load_reranker(folder).model
        for name, own in reads.items():
            if (found := getattr(model.config, name)) != own:
                raise ValueError(
                    f"Expected the reranker in {folder} to have {name}={own!r:.20}, found "
                    f"{found!r:.20}; name the tokenizer and text encoder that it was trained with."
                )
        held_out = open_records(evaluate, count=part.count)
        quality = reranker_quality(model, *_pairs(held_out, codes, encoder, bars, ranks))
        return kept({"data": held_out.name, **quality.to_json()}, results)
    check_module_folder(folder, RerankerConfig)
    public = part.records(bars)
    check_sizes(settings, len(public), ranks.world)
    size = codes.config.image_size(0)
    torch.manual_seed(settings.seed)
    model = Reranker(
        RerankerConfig(**reads, text_width=encoder.width, image_size=size, patch=max(1, size // 4))
    )
    pairs = _pairs(public, codes, encoder, bars, ranks)
    bars.train(train_reranker(model, *pairs, settings, ranks), "reranker")
    if not ranks.leads:
        return None
    source = reranker_input(public.name, len(public), rendered=part.rendered)
    save_reranker(folder, model.cpu(), source)
    return {"folder": str(folder), "steps": settings.steps}


def _pairs(
    records: Records, codes: SpectralTokenizer, encoder: TextEncoder, bars: Bars, ranks: Ranks
) -> tuple[Tensor, Examples, list[str]]:
    """A set's coarsest images, its examples, and its first captions in words."""
    from dpwg.training.reranker import coarsest_images

    examples = encode_examples(records, codes, encoder, bars, ranks)
    captions = [records[index].captions[0] for index in range(len(records))]
    return torch.cat(list(coarsest_images(codes, examples))), examples, captions


def _encoder(part: Part, name: str | None, base: Release | None = None) -> TextEncoder:
    """The text encoder of the base, or the one that is asked for.

    Any but MiniLM may have been trained on anything, a repository of the user's own too: its user
    declares it public, as the card then says.
    """
    from dpwg.config import MINILM
    from dpwg.method.encoders import find_encoder, open_encoder

    preset = get_preset(part.preset)
    if base is not None:
        if name:
            raise ValueError(
                f"Expected no text-encoder={name!r} with --base: a model reads captions as it "
                "began to."
            )
        return open_encoder(base.text_encoder)
    asked = name or preset.text_encoder
    if asked != MINILM and not part.public:
        raise ValueError(
            f"Expected --public with the text encoder {asked!r}, which is not the embedded "
            f"{MINILM}: it must have seen nothing that is sensitive, neither images nor captions."
        )
    return find_encoder(asked, max_tokens=None if name else preset.model.text_tokens)
