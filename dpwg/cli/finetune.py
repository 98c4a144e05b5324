"""`finetune`: WaveletGPT, trained privately on sensitive images and captions."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dpwg.cli.console import Bars, warn
from dpwg.cli.options import Data, Delta, Device, Unit, new_or_resumed
from dpwg.cli.privacy import make_plan
from dpwg.training.private import Finetuning

if TYPE_CHECKING:
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
    out: Path | None = None,
    called: str | None = None,
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
        out: release folder
        called: the data set's name on the card, which is public; a folder's own name is not told
        plan: show noise, epsilon, memory and time; trains nothing, decodes no image but for
            --skip-broken
        records: with --plan, so many, of no data set
    """
    from dpwg.data.sets import SPLITS
    from dpwg.method.families import FAMILIES
    from dpwg.method.generator import Generator
    from dpwg.release.folder import find_checkpoint, load_public
    from dpwg.training.cost import rehearse
    from dpwg.training.encodings import encoded_root
    from dpwg.training.optimizer import Progress
    from dpwg.training.presets import get_preset
    from dpwg.training.processes import Ranks, keep_freed_memory
    from dpwg.training.recipe import UNNAMED, Note, Trained, count_units, train_private

    ranks = Ranks.from_environment(device)
    bars = Bars(ranks)
    if noise_multiplier is not None and not noise_multiplier > 0:
        raise ValueError("Expected noise above 0; pass --epsilon inf to train without privacy.")

    def promise(units: int) -> PrivacyPlan:
        size = min(4096, -(-units // 12)) if batch is None else batch
        return make_plan(units, size, steps, epsilon, noise_multiplier, delta, max_grad_norm)

    if plan:
        facts: dict[str, Any] = {"dataset": "none: as many records as were asked for", "unit": unit}
        if records is None:
            found = source.records(bars)
            left_out = len(getattr(found, "left_out", ()))
            facts |= {"dataset": found.name, "images": len(found), "left_out": left_out}
            records = count_units(found, unit)
        if preset and not base:
            sizes = get_preset(preset)
            model: Generator = FAMILIES[sizes.family].model(sizes.model)
            facts |= {"text_encoder": sizes.text_encoder, "upsampler": sizes.upsampler}
        else:
            model = load_public(base or BASE).model
        model.checkpointing, planned = checkpointing, promise(records)
        taken = rehearse(model, planned, settings, ranks)
        facts |= {"sampling_rate": planned.sampling_rate, **asdict(planned)}
        facts |= {"epsilon": asdict(planned.epsilons()), **asdict(taken)}
        return facts if ranks.leads else None
    if records is not None or (preset and not base):
        raise ValueError(
            "Expected --plan with --records, and with --preset but no --base: a run counts its "
            "own records, and a preset has no weights to start from."
        )
    if not (run_folder and out):
        raise ValueError("Expected --run-folder and --out; with --plan nothing is trained.")
    private = source.records(bars)
    column = SPLITS[source.data][0].unit if source.data in SPLITS and unit == "image" else ""
    if column and ranks.leads:
        warn(f"Each image is protected, not who is in several of them; --unit {column} does that.")
    keep_freed_memory()
    progress = train_private(
        private,
        promise(count_units(private, unit)),
        out=out,
        folder=new_or_resumed(run_folder, resume=resume),
        base=base or BASE,
        settings=settings,
        unit=unit,
        called=called or (source.data if source.data in SPLITS else UNNAMED),
        target_epsilon=None if epsilon == math.inf else epsilon,
        left_out=source.skip_broken,
        tokenizer_folder=tokenizer,
        adapter_only=tokenizer is not None
        and not whole
        and _among_checkpoints(find_checkpoint(base or BASE))
        and _among_checkpoints(out),
        checkpointing=checkpointing,
        ranks=ranks,
    )
    report = None
    try:
        for report in progress:
            if isinstance(report, Progress):
                bars.show(report, "fine-tuning")
            elif isinstance(report, Note) and ranks.leads:
                warn(report.told)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped. What was saved is in {run_folder}: the same command with --resume goes on "
            "from there."
        ) from None
    if not isinstance(report, Trained):  # of another process than the leading one
        return None
    return {
        "folder": str(out),
        "epsilon": report.card.epsilon,
        "steps": report.card.steps,
        "unit": unit,
        "records": report.card.records,
        "images": len(private),
        "left_out": len(getattr(private, "left_out", ())),
        "private_encodings": str(encoded_root()),
    }


def _among_checkpoints(folder: Path) -> bool:
    from dpwg.modules import checkpoint_root

    return folder.resolve().is_relative_to(checkpoint_root().resolve())
