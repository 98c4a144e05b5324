"""From a data set and a plan to a release: what the command line, the Train tab and a GPU job call.

The order matters. The plan is the caller's, made before any record is read; the place to write to
is tried, and a saved state is opened, before the first step; the records are encoded once, and the
steps are taken from what was encoded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpwg.data.records import Records, group_numbers
from dpwg.method.captions import TextEncoder
from dpwg.method.encoders import open_encoder
from dpwg.privacy.accounting import PrivacyPlan
from dpwg.privacy.card import PrivacyCard
from dpwg.release.folder import (
    Release,
    check_release_folder,
    find_checkpoint,
    load_public,
    save_release,
)
from dpwg.release.shared import check_same_tokenizer
from dpwg.training.encodings import encode_examples, encoded_root
from dpwg.training.examples import Examples
from dpwg.training.optimizer import Progress
from dpwg.training.private import Finetuning, PrivateTraining
from dpwg.training.processes import Ranks
from dpwg.training.run_state import locked

UNNAMED = "a data set that its owner does not name"
"""What a card says unless it is told: the name of a folder may be private."""
IMAGE = "image"


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something that the owner of the data should know of it before steps are taken."""

    told: str


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The last report of a run: the release that was written, and its card."""

    folder: Path
    card: PrivacyCard


def groups_of(records: Records, unit: str = IMAGE) -> Tensor | None:
    """The number of each image's group by that column, int64 (I,); None where images are units."""
    return None if unit == IMAGE else torch.tensor(group_numbers(records, unit))


def count_units(records: Records, unit: str = IMAGE) -> int:
    """How many records a plan is for: images, or groups of them by that column."""
    group_I = groups_of(records, unit)
    return len(records) if group_I is None else int(group_I.max()) + 1


def train_private(
    records: Records,
    plan: PrivacyPlan,
    *,
    out: Path,
    folder: Path,
    base: str | Path = "faces/public",
    settings: Finetuning | None = None,
    unit: str = IMAGE,
    called: str = UNNAMED,
    target_epsilon: float | None = None,
    left_out: bool = False,
    tokenizer_folder: Path | None = None,
    adapter_only: bool = False,
    checkpointing: bool = False,
    encoder: TextEncoder | None = None,
    cache: Path | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Progress | Note | Trained]:
    """Fine-tune the public release `base` privately on records, and write the release to `out`.

    Yields a `Progress` of stage "captions" and "images" while records are encoded; a `Note` where
    records repeat images or captions are too long; a `Progress` a step, of which all but steps and
    epsilon is private; and at the end what was `Trained`, of the leading process alone. A run that
    is in `folder` goes on. `folder` and `cache` (by default that of the machine) are private.

    `unit` is "image", or the column by whose values images are joined to groups that are protected
    as a whole: `plan.records` counts those (`count_units`). `called` is the data set's name on the
    card, `target_epsilon` what the plan was calibrated to, and `left_out` says that broken images,
    if any, were skipped. The release refers to `tokenizer_folder` if it is given, and with
    `adapter_only` holds only what was added to `base`. `encoder` is the base's, if it is open.

    Raises ValueError or OSError, before the first step, for a plan of another number of records, a
    place that cannot be written, a run of another plan, base or data, a damaged state, and a folder
    in which another process trains.
    """
    ranks, cache = ranks or Ranks(), cache or encoded_root()
    if folder.resolve().is_relative_to(out.resolve()):
        raise ValueError(
            f"Expected the run folder {folder} outside of out={out}: the training state is "
            "private, the release is not."
        )
    if plan.records != (units := count_units(records, unit)):
        raise ValueError(f"Expected a plan for {units} records, found one for {plan.records}.")
    start, base_folder = load_public(base), find_checkpoint(base)
    if ranks.leads:
        check_release_folder(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    if tokenizer_folder is not None:
        check_same_tokenizer(tokenizer_folder, start.tokenizer)
    with locked(folder if ranks.leads else None):
        encoder = encoder or open_encoder(start.text_encoder).to(ranks.device)
        given = (records, encoder, start.tokenizer, cache)
        examples = yield from encode_examples(*given, group_I=groups_of(records, unit))
        yield from _notes(examples)
        start.model.checkpointing = checkpointing
        training = PrivateTraining(
            start.model,
            examples,
            plan,
            settings or Finetuning(),
            folder,
            ranks=ranks,
        )
        yield from training.run()
        if not ranks.leads:
            return
        card = PrivacyCard.from_ledger(
            training.ledger,
            delta=plan.delta,
            dataset=called,
            records=plan.records,
            max_grad_norm=plan.max_grad_norm if plan.noise_multiplier else None,
            public_inputs=start.card.public_inputs,
            target_epsilon=target_epsilon,
            group_column=None if unit == IMAGE else unit,
            left_out=left_out,
        )
        release = Release(
            model=start.model.cpu(),
            tokenizer=start.tokenizer,
            card=card,
            text_encoder=start.text_encoder,
            family=start.family,
            adapter=training.adapter,
            upsampler=start.upsampler,
            base_sha256=start.weights_sha256,
        )
        save_release(
            out,
            release,
            tokenizer_folder=tokenizer_folder,
            base_folder=base_folder if adapter_only and training.adapter is not None else None,
        )
    yield Trained(folder=out, card=card)


def _notes(examples: Examples) -> Iterator[Note]:
    if repeated := examples.repeated:
        yield Note(
            told=f"{repeated:,} of {len(examples):,} records hold an image that another one holds "
            "too. Of what is there k times, epsilon is k times as large or more; keep one of each, "
            "or join them by a column as one unit."
        )
    if cut := examples.cut:
        yield Note(
            told=f"{cut:,} captions fill all that the text encoder reads; what they say behind "
            "that is not trained on."
        )
