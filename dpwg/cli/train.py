"""`train` for a whole family; `tokenizer`, `upsampler`, `pretrain`, `reranker` for its parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from dpwg.cli.console import Bars, kept, print_line
from dpwg.cli.options import (
    Device,
    EncoderName,
    Evaluate,
    Part,
    Results,
    TokenizerFolder,
    new_or_resumed,
)
from dpwg.config import RerankerConfig, SuperResolutionConfig, TokenizerConfig
from dpwg.data import open_records
from dpwg.modules import check_module_folder, checkpoint_root
from dpwg.release.shared import RERANKER, load_tokenizer
from dpwg.training.encodings import encoded_root
from dpwg.training.optimizer import Job, Progress
from dpwg.training.presets import FAMILIES, get_preset
from dpwg.training.processes import Ranks, keep_freed_memory
from dpwg.training.public_model import Pretraining, make_public
from dpwg.training.reranker import RerankerTraining, encode_pairs, make_reranker
from dpwg.training.tokenizer import TokenizerTraining, make_tokenizer
from dpwg.training.upsampler import SuperResolutionTraining, make_upsampler
from dpwg.upsampling.superresolution import UPSAMPLER

if TYPE_CHECKING:
    from dpwg.method.captions import TextEncoder
    from dpwg.release.folder import Release


def train(
    family: Positional[str],
    /,
    *,
    minutes: float | None = None,
    out: Path | None = None,
    run_folder: Path | None = None,
    pack: Path | None = None,
    packed: Path | None = None,
    device: Device = None,
) -> Any:
    """Train a whole family of checkpoints within a time budget.

    Args:
        family: celeba, celeba/dp-llamagen or celeba/dp-ldm (all need DPWG_PHOTOS)
        minutes: of work in all, counting interrupted runs
        out: output folder; checkpoints/FAMILY by default
        run_folder: private training state; runs/FAMILY by default
        pack: write the files that another machine needs into this folder, which is private; then
            stop
        packed: train from a folder made by --pack
    """
    from dpwg.method.encoders import default_encoder
    from dpwg.training.family import train_family
    from dpwg.training.sources import Source

    if family not in FAMILIES:
        raise ValueError(f"There is no family {family!r:.80}; there is {', '.join(FAMILIES)}.")
    plan, out = FAMILIES[family], out or checkpoint_root() / family

    def records() -> Source:
        public, private = open_records(plan.public_set), open_records(plan.private_set)
        return Source(public, private, default_encoder(), encoded_root())

    if pack:
        columns = tuple({run.unit for run in plan.runs} - {"image"})
        records().pack(load_tokenizer(out / "tokenizer"), columns, pack)
        return {file.name: file.stat().st_size for file in sorted(pack.glob("[!.]*"))}
    if minutes is None or not minutes > 0:
        raise ValueError("Expected --minutes above 0: the total time for all stages.")
    keep_freed_memory()
    ranks = Ranks.from_environment(device)
    bars = Bars(ranks)
    source = Source.packed(packed, ranks.device) if packed else records()
    done: dict[str, Any] = {}
    folder = run_folder or Path("runs") / family
    for report in train_family(plan, source, out, folder, minutes=minutes, ranks=ranks):
        bars(report.stage, report.step, report.steps)
        if report.done is not None:
            done[report.stage] = report.done
            if ranks.leads:
                print_line({"stage": report.stage, **report.done})
    return {"folder": str(out), "stages": list(done)} if ranks.leads else None


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
    from dpwg.measure.quality import tokenizer_quality

    folder = part.out or checkpoint_root() / "tokenizer"
    if evaluate:
        held_out = open_records(evaluate, count=part.count)
        quality = tokenizer_quality(load_tokenizer(folder), held_out)
        return kept({"data": evaluate, **quality.to_json()}, results)
    config = get_preset(part.preset).tokenizer
    if not isinstance(config, TokenizerConfig):
        raise ValueError("`train celeba/dp-ldm` alone makes DP-LDM's autoencoder.")
    config = replace(config, codebook_sizes=codebook_sizes or config.codebook_sizes)
    check_module_folder(folder, TokenizerConfig)
    job = _job(part, folder)
    return _made(job, make_tokenizer(job, config, settings), "tokenizer", settings.steps)


def upsampler(
    *,
    part: Part = Part(data="public-train"),
    tokenizer: TokenizerFolder = None,
    settings: SuperResolutionTraining = SuperResolutionTraining(),
    evaluate: Evaluate = None,
    results: Results = None,
) -> Any:
    """Train the super-resolution model on public images."""
    from dpwg.measure.quality import upsampler_quality
    from dpwg.upsampling.upsamplers import embedded_upsamplers

    folder = part.out or checkpoint_root() / UPSAMPLER
    codes = load_tokenizer(tokenizer or checkpoint_root() / "tokenizer")
    if evaluate:
        held_out, rows = open_records(evaluate), []
        for own in embedded_upsamplers(folder):
            Bars()(f"measuring {own.name}", 0, 1)
            rows.append(upsampler_quality(own, codes, held_out, part.count or 500).to_json())
        return kept({"data": evaluate, "upsamplers": rows}, results)
    config = get_preset(part.preset).superresolution
    check_module_folder(folder, SuperResolutionConfig)
    job = _job(part, folder)
    return _made(job, make_upsampler(job, config, settings, codes), "upsampler", settings.steps)


def pretrain(
    *,
    part: Part = Part(data="public-train"),
    tokenizer: TokenizerFolder = None,
    text_encoder: EncoderName = None,
    base: str | None = None,
    settings: Pretraining = Pretraining(),
    checkpointing: bool = False,
    compile: bool = False,
    run_folder: Path = Path("runs/pretrain"),
    resume: bool = False,
) -> Any:
    """Train WaveletGPT on public images and captions.

    Args:
        base: public checkpoint to start from, with its text encoder
        checkpointing: compute activations again in the backward pass instead of keeping them
        compile: with torch.compile: for GPUs
        run_folder: training state
        resume: go on with the run folder
    """
    from dpwg.modules import module_sha256
    from dpwg.release.folder import check_release_folder, load_public
    from dpwg.release.provenance import public_inputs

    out = part.out or checkpoint_root() / "faces" / "public"
    check_release_folder(out)
    tokenizer = tokenizer or checkpoint_root() / "tokenizer"
    start = load_public(base) if base else None
    encoder = _encoder(part, text_encoder, start)
    told = start.text_encoder if start else encoder.id
    job = _job(part, out, new_or_resumed(run_folder, resume=resume))
    name, count, digest = job.records.name, len(job.records), module_sha256(tokenizer)
    steps = make_public(
        job,
        encoder.to(job.ranks.device),
        get_preset(part.preset),
        settings,
        tokenizer_folder=tokenizer,
        inputs=public_inputs(name, count, told, digest, rendered=part.rendered),
        base=start,
        checkpointing=checkpointing,
        compiled=compile,
    )
    return _made(job, steps, "pretraining", settings.steps, text_encoder=told.name)


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
    from dpwg.measure.quality import reranker_quality
    from dpwg.release.provenance import reranker_input
    from dpwg.release.shared import load_reranker, reranker_reads

    folder = part.out or checkpoint_root() / RERANKER
    codes = load_tokenizer(tokenizer or checkpoint_root() / "tokenizer")
    encoder = _encoder(part, text_encoder)
    if evaluate:
        model = load_reranker(folder).model
        for name, own in reranker_reads(codes, encoder.digest, encoder.max_tokens).items():
            if (found := getattr(model.config, name)) != own:
                raise ValueError(
                    f"Expected the reranker in {folder} to have {name}={own!r:.20}, found "
                    f"{found!r:.20}; name the tokenizer and text encoder that it was trained with."
                )
        held_out = open_records(evaluate, count=part.count)
        pairs = Bars().train(encode_pairs(held_out, encoder, codes, encoded_root()))
        quality = reranker_quality(model, *pairs)
        return kept({"data": held_out.name, **quality.to_json()}, results)
    check_module_folder(folder, RerankerConfig)
    job = _job(part, folder)
    source = reranker_input(job.records.name, len(job.records), rendered=part.rendered)
    steps = make_reranker(job, encoder.to(job.ranks.device), codes, settings, source)
    return _made(job, steps, "reranker", settings.steps)


def _job(part: Part, out: Path, folder: Path | None = None) -> Job:
    ranks = Ranks.from_environment(part.device)
    records = part.records(Bars(ranks))
    return Job(records=records, out=out, cache=encoded_root(), ranks=ranks, folder=folder)


def _made(job: Job, reports: Iterator[Progress], stage: str, steps: int, **facts: Any) -> Any:
    Bars(job.ranks).train(reports, stage)
    return {"folder": str(job.out), "steps": steps, **facts} if job.ranks.leads else None


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
