"""`finetune`: WaveletGPT, trained privately on sensitive images and captions."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpwg.cli.console import print_line, run_training, warn
from dpwg.cli.options import (
    SHIPPED_PRESET,
    Verb,
    checkpointing_option,
    data_options,
    delta_option,
    device_option,
    encode_examples,
    new_or_resumed,
    precision_option,
    preset_option,
    read_delta,
    read_records,
    read_settings,
    unit_option,
)

if TYPE_CHECKING:
    from torch import Tensor

    from dpwg.data import Records
    from dpwg.privacy.accounting import PrivacyPlan
    from dpwg.training.processes import Ranks

BASE = "faces/public"


def add_finetune(verb: Verb) -> None:
    command = verb("finetune", _finetune, "fine-tune privately on sensitive images and captions")
    data_options(command, "faces-train")
    unit_option(command)
    command.add_argument("--base", help=f"public checkpoint to start from; {BASE} by default")
    preset_option(command, None)
    promise = command.add_mutually_exclusive_group(required=True)
    promise.add_argument("--epsilon", type=float, help="inf: without privacy")
    promise.add_argument("--noise-multiplier", type=float, help="epsilon then follows")
    delta_option(command)
    command.add_argument(
        "--batch",
        type=int,
        help="expected size of a batch; a twelfth of the records by default, at most 4096",
    )
    command.add_argument("--steps", type=int, default=40, help="40 by default")
    command.add_argument("--max-grad-norm", type=float, default=0.1)
    command.add_argument("--learning-rate", type=float)
    command.add_argument("--warmup", type=int)
    command.add_argument("--ema-decay", type=float)
    command.add_argument("--lora-rank", type=int, help="0 trains every parameter")
    command.add_argument("--micro-batch", type=int)
    device_option(command)
    precision_option(command)
    checkpointing_option(command)
    command.add_argument("--tokenizer", type=Path, help="refer to this folder, do not copy it")
    command.add_argument(
        "--whole",
        action="store_true",
        help="write the whole model. Otherwise, if --tokenizer is given and both base and --out "
        "are in the checkpoints folder, only the adapter is written; it needs its base to load",
    )
    command.add_argument("--run-folder", type=Path, help="private training state")
    command.add_argument("--resume", action="store_true", help="go on with the run folder")
    command.add_argument("--save-every", type=int, help="steps from one saved state to the next")
    command.add_argument(
        "--reports",
        action="store_true",
        help="print a JSON line for every report instead of bars; its losses are private",
    )
    command.add_argument("--out", type=Path, help="release folder")
    command.add_argument(
        "--plan",
        action="store_true",
        help="show noise, epsilon, memory and time; trains nothing, decodes no image but for "
        "--skip-broken; with --preset and no --base, of an untrained model of that size",
    )
    command.add_argument("--records", type=int, help="with --plan: so many, of no data set")


def _finetune(options: argparse.Namespace) -> Any:
    from dpwg.data.cache import cache_root
    from dpwg.method.encoders import open_encoder
    from dpwg.privacy.card import PrivacyCard
    from dpwg.release.folder import (
        Release,
        check_same_tokenizer,
        find_checkpoint,
        load_public,
        save_release,
    )
    from dpwg.training.presets import get_preset
    from dpwg.training.private import Finetuning, PrivateTraining
    from dpwg.training.processes import Ranks

    if options.plan:
        return _rehearse(options)
    if options.records is not None:
        raise ValueError(
            f"Expected no records={options.records} without --plan: a run counts its own."
        )
    if options.preset and not options.base:
        raise ValueError(
            f"Expected --base with preset={options.preset!r}, which has sizes and settings but no "
            "weights; pretrain a model with it, or pass --plan."
        )
    preset = get_preset(options.preset or SHIPPED_PRESET)
    ranks = Ranks.from_environment(options.device)
    run_folder = _run_folder(options)
    base = load_public(options.base or BASE)
    if options.tokenizer is not None:
        check_same_tokenizer(options.tokenizer, base.tokenizer)
    encoder = open_encoder(base.text_encoder)
    records, group_I, units = _private_set(options, ranks)
    left_out = len(getattr(records, "left_out", ()))
    plan, target = _promise(options, units)
    base.model.checkpointing = options.checkpointing
    examples = encode_examples(
        records, base.tokenizer, encoder, ranks, group_I, lines=options.reports
    )
    if ranks.leads and (repeated := examples.repeated):
        told = (
            f"{repeated:,} of {len(examples):,} records hold an image that another one holds too. "
            "Of what is there k times, epsilon is k times as large or more; keep one of each, or "
            "join them with --unit. `data check` names equal files."
        )
        if options.reports:
            print_line({"stage": "repeated", "told": told})
        else:
            warn(told)
    training = PrivateTraining(
        base.model.requires_grad_(True),
        examples,
        plan,
        read_settings(Finetuning, options, preset.finetuning),
        run_folder,
        ranks=ranks,
    )
    run_training(training.run(), "fine-tuning", ranks, lines=options.reports)
    if not ranks.leads:
        return None
    card = PrivacyCard.from_ledger(
        training.ledger,
        delta=plan.delta,
        dataset=records.name,
        records=plan.records,
        max_grad_norm=plan.max_grad_norm if plan.noise_multiplier else None,
        public_inputs=base.card.public_inputs,
        target_epsilon=target,
        group_column=None if group_I is None else options.unit,
        images=len(records),
        left_out=options.skip_broken,
    )
    release = Release(
        model=base.model.cpu(),
        tokenizer=base.tokenizer,
        card=card,
        text_encoder=base.text_encoder,
        adapter=training.adapter,
        upsampler=base.upsampler,
    )
    base_folder = find_checkpoint(options.base or BASE)
    apart = training.adapter is not None and options.tokenizer is not None and not options.whole
    beside = apart and _among_checkpoints(base_folder) and _among_checkpoints(options.out)
    save_release(
        options.out,
        release,
        tokenizer_folder=options.tokenizer,
        base_folder=base_folder if beside else None,
    )
    answer = {
        "folder": str(options.out),
        "epsilon": card.epsilon,
        "steps": card.steps,
        "unit": options.unit,
        "records": card.records,
        "images": len(records),
        "left_out": left_out,
        "private_encodings": str(cache_root() / "encoded"),
    }
    if options.reports:
        return print_line({"stage": "release", **answer})
    return answer


def _rehearse(options: argparse.Namespace) -> Any:
    """A plan and what it will take, for a person who decides whether to run it."""
    from dpwg.method.transformer import WaveletGPT
    from dpwg.release.folder import load_public
    from dpwg.training.presets import get_preset
    from dpwg.training.private import Finetuning
    from dpwg.training.processes import Ranks
    from dpwg.training.rehearsal import rehearse

    preset = get_preset(options.preset or SHIPPED_PRESET)
    ranks = Ranks.from_environment(options.device)
    parts = {}
    if options.preset and not options.base:
        model = WaveletGPT(preset.model)
        parts = {"text_encoder": preset.text_encoder, "upsampler": preset.upsampler}
    else:
        model = load_public(options.base or BASE).model
    name, counts = "none: as many records as were asked for", {"unit": options.unit}
    if options.records is None:
        records, _, units = _private_set(options, ranks)
        left_out = len(getattr(records, "left_out", ()))
        name, counts = records.name, counts | {"images": len(records), "left_out": left_out}
    plan, _ = _promise(options, options.records if options.records is not None else units)
    settings = read_settings(Finetuning, options, preset.finetuning)
    model.checkpointing = options.checkpointing
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


def _private_set(options: argparse.Namespace, ranks: Ranks) -> tuple[Records, Tensor | None, int]:
    """The images, the number of each one's group if groups are protected, and how many units."""
    import torch

    from dpwg.data.groups import group_numbers

    records = read_records(options, ranks)
    if options.unit == "image":
        return records, None, len(records)
    group_I = torch.tensor(group_numbers(records, options.unit))
    return records, group_I, int(group_I.max()) + 1


def _promise(options: argparse.Namespace, units: int) -> tuple[PrivacyPlan, float | None]:
    """The plan for so many units, and the epsilon that it was calibrated to."""
    from dpwg.privacy.accounting import PrivacyPlan

    sizes = {
        "records": units,
        "batch_size": min(4096, -(-units // 12)) if options.batch is None else options.batch,
        "steps": options.steps,
        "delta": read_delta(options, units),
        "max_grad_norm": options.max_grad_norm,
    }
    if options.epsilon == math.inf:
        return PrivacyPlan(**sizes, noise_multiplier=0.0), None
    if options.epsilon is not None:
        plan = PrivacyPlan.calibrated(**sizes, target_epsilon=options.epsilon)
        return plan, options.epsilon
    if options.noise_multiplier > 0:
        return PrivacyPlan(**sizes, noise_multiplier=options.noise_multiplier), None
    raise ValueError(
        f"Expected noise-multiplier={options.noise_multiplier} > 0; pass --epsilon inf to train "
        "without privacy."
    )


def _among_checkpoints(folder: Path) -> bool:
    from dpwg.modules import checkpoint_root

    return folder.resolve().is_relative_to(checkpoint_root().resolve())


def _run_folder(options: argparse.Namespace) -> Path:
    """The folder of a private run's state, which must not be inside the release."""
    from dpwg.release.folder import check_release_folder

    if not (options.run_folder and options.out):
        raise ValueError("Expected --run-folder and --out; with --plan nothing is trained.")
    if options.run_folder.resolve().is_relative_to(options.out.resolve()):
        raise ValueError(
            f"Expected run-folder={options.run_folder} outside of out={options.out}: the training "
            "state is private, the release is not."
        )
    check_release_folder(options.out)
    return new_or_resumed(options.run_folder, resume=options.resume)
