"""`finetune`: WaveletGPT, trained privately on sensitive images and captions."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dpwg.cli.console import Bars, print_line, warn
from dpwg.cli.options import (
    SHIPPED_PRESET,
    Data,
    Delta,
    Device,
    Unit,
    encode_examples,
    new_or_resumed,
)
from dpwg.cli.privacy import make_plan
from dpwg.training.private import Finetuning

if TYPE_CHECKING:
    from torch import Tensor

    from dpwg.data import Records
    from dpwg.privacy.accounting import PrivacyPlan

BASE = "faces/public"
PROMISE = tyro.conf.create_mutex_group(required=True)


def finetune(
    *,
    source: Data = Data(data="faces-train"),
    unit: Unit = "image",
    base: str | None = None,
    preset: str | None = None,
    epsilon: Annotated[float | None, PROMISE] = None,
    noise_multiplier: Annotated[float | None, PROMISE] = None,
    delta: Delta = None,
    batch: int | None = None,
    steps: int = 40,
    max_grad_norm: float = 0.1,
    settings: Finetuning = Finetuning(),
    checkpointing: bool = False,
    tokenizer: Path | None = None,
    whole: bool = False,
    run_folder: Path | None = None,
    resume: bool = False,
    reports: bool = False,
    out: Path | None = None,
    plan: bool = False,
    records: int | None = None,
    device: Device = None,
) -> Any:
    """Fine-tune privately on sensitive images and captions.

    Args:
        base: public checkpoint to start from; faces/public by default
        preset: settings, which the other options change; with --plan and no --base, sizes too
        epsilon: the promise; inf is without privacy
        noise_multiplier: epsilon then follows
        batch: expected size of a batch; a twelfth of the records by default, at most 4096
        steps: of DP-SGD
        max_grad_norm: to which each record's gradient is clipped
        checkpointing: compute activations again in the backward pass instead of keeping them
        tokenizer: refer to this folder, do not copy it
        whole: write the whole model. Otherwise, if --tokenizer is given and both base and --out are
            in the checkpoints folder, only the adapter is written; it needs its base to load
        run_folder: private training state
        resume: go on with the run folder
        reports: print a JSON line for every report instead of bars; its losses are private
        out: release folder
        plan: show noise, epsilon, memory and time; trains nothing, decodes no image but for
            --skip-broken
        records: with --plan, so many, of no data set
    """
    from dpwg.data.cache import cache_root
    from dpwg.method.encoders import open_encoder
    from dpwg.privacy.card import PrivacyCard
    from dpwg.release.folder import Release, find_checkpoint, load_public, save_release
    from dpwg.release.shared import check_same_tokenizer
    from dpwg.training.private import PrivateTraining
    from dpwg.training.processes import Ranks

    ranks = Ranks.from_environment(device)
    bars = Bars(ranks, lines=reports)

    if noise_multiplier is not None and not noise_multiplier > 0:
        raise ValueError("Expected noise above 0; pass --epsilon inf to train without privacy.")

    def promise(units: int) -> PrivacyPlan:
        size = min(4096, -(-units // 12)) if batch is None else batch
        return make_plan(units, size, steps, epsilon, noise_multiplier, delta, max_grad_norm)

    if plan:
        return _rehearse(
            source, unit, base, preset, records, promise, settings, checkpointing, ranks, bars
        )
    if records is not None or (preset and not base):
        raise ValueError(
            "Expected --plan with --records, and with --preset but no --base: a run counts its "
            "own records, and a preset has no weights to start from."
        )
    run_folder = _run_folder(run_folder, out, resume)
    assert out is not None
    start = load_public(base or BASE)
    if tokenizer is not None:
        check_same_tokenizer(tokenizer, start.tokenizer)
    encoder = open_encoder(start.text_encoder)
    private, group_I, units = _private_set(source, unit, bars)
    made = promise(units)
    start.model.checkpointing = checkpointing
    examples = encode_examples(private, start.tokenizer, encoder, bars, ranks, group_I)
    notes = []
    if ranks.leads and (repeated := examples.repeated):
        notes.append(
            f"{repeated:,} of {len(examples):,} records hold an image that another one holds too. "
            "Of what is there k times, epsilon is k times as large or more; keep one of each, or "
            "join them with --unit. `data check` names equal files."
        )
    if ranks.leads and (cut := examples.cut):
        notes.append(
            f"{cut:,} captions fill the {encoder.max_tokens} tokens that the text encoder reads; "
            "what they say behind these is not trained on."
        )
    for told in notes:
        if reports:
            print_line({"stage": "note", "told": told})
        else:
            warn(told)
    model = start.model.requires_grad_(True)
    training = PrivateTraining(model, examples, made, settings, run_folder, ranks=ranks)
    bars.train(training.run(), "fine-tuning")
    if not ranks.leads:
        return None
    card = PrivacyCard.from_ledger(
        training.ledger,
        delta=made.delta,
        dataset=private.name,
        records=made.records,
        max_grad_norm=made.max_grad_norm if made.noise_multiplier else None,
        public_inputs=start.card.public_inputs,
        target_epsilon=None if epsilon == math.inf else epsilon,
        group_column=None if group_I is None else unit,
        left_out=source.skip_broken,
    )
    release = Release(
        model=start.model.cpu(),
        tokenizer=start.tokenizer,
        card=card,
        text_encoder=start.text_encoder,
        adapter=training.adapter,
        upsampler=start.upsampler,
    )
    base_folder = find_checkpoint(base or BASE)
    apart = training.adapter is not None and tokenizer is not None and not whole
    beside = apart and _among_checkpoints(base_folder) and _among_checkpoints(out)
    save_release(
        out, release, tokenizer_folder=tokenizer, base_folder=base_folder if beside else None
    )
    answer = {
        "folder": str(out),
        "epsilon": card.epsilon,
        "steps": card.steps,
        "unit": unit,
        "records": card.records,
        "images": len(private),
        "left_out": len(getattr(private, "left_out", ())),
        "private_encodings": str(cache_root() / "encoded"),
    }
    return print_line({"stage": "release", **answer}) if reports else answer


def _rehearse(
    source: Data,
    unit: str,
    base: str | None,
    preset: str | None,
    count: int | None,
    promise: Any,
    settings: Finetuning,
    checkpointing: bool,
    ranks: Any,
    bars: Bars,
) -> Any:
    """A plan and what it will take, for a person who decides whether to run it."""
    from dpwg.method.transformer import WaveletGPT
    from dpwg.release.folder import load_public
    from dpwg.training.presets import get_preset
    from dpwg.training.rehearsal import rehearse

    sizes = get_preset(preset or SHIPPED_PRESET)
    parts = {}
    if preset and not base:
        model = WaveletGPT(sizes.model)
        parts = {"text_encoder": sizes.text_encoder, "upsampler": sizes.upsampler}
    else:
        model = load_public(base or BASE).model
    counts: dict[str, Any] = {"unit": unit}
    name = "none: as many records as were asked for"
    units = count
    if units is None:
        records, _, units = _private_set(source, unit, bars)
        left_out = len(getattr(records, "left_out", ()))
        name, counts = records.name, counts | {"images": len(records), "left_out": left_out}
    plan = promise(units)
    model.checkpointing = checkpointing
    told = rehearse(model, plan, settings, ranks)
    if not ranks.leads:
        return None
    return {
        "dataset": name,
        "records": plan.records,
        **counts,
        **parts,
        "sampling_rate": plan.sampling_rate,
        "steps": plan.steps,
        "noise_multiplier": plan.noise_multiplier,
        "max_grad_norm": plan.max_grad_norm,
        "delta": plan.delta,
        "epsilon": asdict(plan.epsilons()),
        **asdict(told),
    }


def _private_set(source: Data, unit: str, bars: Bars) -> tuple[Records, Tensor | None, int]:
    """The images, the number of each one's group if groups are protected, and how many units."""
    import torch

    from dpwg.data.records import group_numbers

    records = source.records(bars)
    if unit == "image":
        return records, None, len(records)
    group_I = torch.tensor(group_numbers(records, unit))
    return records, group_I, int(group_I.max()) + 1


def _among_checkpoints(folder: Path) -> bool:
    from dpwg.modules import checkpoint_root

    return folder.resolve().is_relative_to(checkpoint_root().resolve())


def _run_folder(run_folder: Path | None, out: Path | None, resume: bool) -> Path:
    """The folder of a private run's state, which must not be inside the release."""
    from dpwg.release.folder import check_release_folder

    if not (run_folder and out):
        raise ValueError("Expected --run-folder and --out; with --plan nothing is trained.")
    if run_folder.resolve().is_relative_to(out.resolve()):
        raise ValueError(
            f"Expected run-folder={run_folder} outside of out={out}: the training state is "
            "private, the release is not."
        )
    check_release_folder(out)
    return new_or_resumed(run_folder, resume=resume)
