"""`bench`, `evaluate`, `audit` and `readme`: measurements, their files and tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from dpwg.cli.console import kept, warn
from dpwg.cli.options import (
    SAMPLING,
    Verb,
    data_options,
    encode_examples,
    precision_option,
    read_records,
    read_settings,
    refuse_all_but,
    sampling_options,
)

if TYPE_CHECKING:
    from dpwg.data.records import Records
    from dpwg.measure.membership import MembershipAttack
    from dpwg.method.sampling import Sampling
    from dpwg.release.folder import Release

AUDITED_PRECISION = "float32"
"""What the released checkpoints were trained in."""


def add_bench(verb: Verb) -> None:
    command = verb("bench", _bench, "measure training, sampling and start-up on this machine")
    command.add_argument("--checkpoint", default="faces/public")
    command.add_argument(
        "--micro-batches", type=int, nargs="+", default=[32, 64], help="each way takes its best"
    )
    precision_option(command)
    command.add_argument("--results", type=Path, help="write the measurement to this file")


def _bench(options: argparse.Namespace) -> Any:
    from dpwg.measure.bench import measure

    answer = measure(
        options.checkpoint,
        micro_batches=options.micro_batches,
        precision=options.precision or "auto",
    )
    return kept(answer, options.results)


def add_evaluate(verb: Verb) -> None:
    command = verb("evaluate", _evaluate, "measure checkpoints on held-out records")
    command.add_argument(
        "checkpoints", nargs="*", help="default: all checkpoints of the data set's family"
    )
    data_options(command, "faces-test")
    command.add_argument("--results", type=Path, help="write the measurement to this file")
    command.add_argument(
        "--colours",
        type=int,
        metavar="COUNT",
        help="draw the captions of so many faces instead of computing the loss: which share of the "
        "colours that they name do the pictures have?",
    )
    command.add_argument("--sheet", type=Path, help="draw captions by checkpoints instead")
    command.add_argument("--captions", type=Path, default=Path("examples/captions.txt"))
    command.add_argument("--seed", type=int, default=0, help="of the sheet")
    sampling_options(command)


def _evaluate(options: argparse.Namespace) -> Any:
    from dpwg.method.sampling import Sampling
    from dpwg.release.folder import checkpoint_names

    known = checkpoint_names()
    family = [name for name in known if name.startswith(f"{options.data.partition('-')[0]}/")]
    names = options.checkpoints or family or known
    settings = read_settings(Sampling, options)
    if options.sheet:
        from dpwg.measure.sheet import sheet

        refuse_all_but(
            options, "sheet", "checkpoints", "captions", "data", "seed", *SAMPLING, beside="--sheet"
        )
        captions = options.captions.read_text().splitlines()
        sheet(names, captions, seed=options.seed, settings=settings).save(options.sheet)
        return {"sheet": str(options.sheet), "checkpoints": names, "captions": captions}
    used = ("checkpoints", "data", "count", "skip_broken", "results")
    if options.colours is None:
        refuse_all_but(options, *used, beside="the loss of what is held out")
    else:
        refuse_all_but(options, "colours", *used, *SAMPLING, beside="--colours")
    records = read_records(options)
    _check_held_out(names, records)
    if options.colours is not None:
        return kept(_colours(names, records, settings, options.colours), options.results)
    return kept(_losses(names, records), options.results)


def _check_held_out(names: Sequence[str], records: Records) -> None:
    from dpwg.release.folder import find_checkpoint, load_card

    for name in names:
        if load_card(find_checkpoint(name)).dataset == records.name:
            raise ValueError(
                f"Expected data={records.name!r} not to be what {name} was trained on: what is "
                "measured there is private."
            )


def _losses(names: Sequence[str], records: Records) -> dict[str, Any]:
    from dpwg.measure.quality import held_out_loss
    from dpwg.method.encoders import open_encoder
    from dpwg.release.folder import load_release

    rows = []
    for name in names:
        release = load_release(name)
        encoder = open_encoder(release.text_encoder)
        examples = encode_examples(records, release.tokenizer, encoder)
        loss = held_out_loss(release.model, examples)
        rows.append({"name": name, "epsilon": release.card.epsilon, "loss": loss})
    return {"data": records.name, "records": len(records), "nats_per_code": rows}


def _colours(
    names: Sequence[str], records: Records, settings: Sampling, count: int
) -> dict[str, Any]:
    from dpwg.measure.colours import codes_fidelity, colour_fidelity
    from dpwg.method.pipeline import DPWaveletPipeline
    from dpwg.release.folder import load_release
    from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, get_upsampler

    if not 1 <= count <= len(records):
        raise ValueError(f"Expected colours={count} in [1, {len(records)}], the records there are.")
    upsample, rows = get_upsampler(DEFAULT_UPSAMPLER), []
    for name in tqdm(names, desc="drawing", unit="checkpoint"):
        pipeline = DPWaveletPipeline.from_pretrained(name)
        found = colour_fidelity(pipeline, records, settings, count, upsample)
        row = {"name": name, "epsilon": pipeline.release.card.epsilon}
        rows.append(row | pipeline.choice(settings) | found.to_json())
    tokenizer = load_release(names[0]).tokenizer
    sampling = settings.to_json()
    del sampling["candidates"]  # each checkpoint has its own
    return {
        "data": records.name,
        "sampling": sampling,
        "upsampler": upsample.name,
        "own_codes": codes_fidelity(tokenizer, upsample, records, count).to_json(),
        "checkpoints": rows,
    }


def add_audit(verb: Verb) -> None:
    command = verb("audit", _audit, "attack a checkpoint: which records was it trained on?")
    command.add_argument(
        "--checkpoint",
        action="append",
        dest="checkpoints",
        help="may be repeated; by default all that were trained on sensitive images, without "
        "--others only those of a set whose test set is known",
    )
    command.add_argument(
        "--reference", help="the public model it began from; faces/public by default"
    )
    command.add_argument(
        "--data", help="the records it was trained on; by default what its card says"
    )
    command.add_argument(
        "--others", help="records of the same kind, left out; the test set by default"
    )
    command.add_argument(
        "--count",
        type=int,
        help="the first records of each at most, or the canaries; 5000 by default",
    )
    command.add_argument(
        "--results", type=Path, help="write a file for each checkpoint into this folder"
    )
    command.add_argument(
        "--engine",
        type=float,
        nargs="*",
        metavar="EPSILON",
        help="train canaries by the private engine instead, and bound its epsilon from below: 1, 3 "
        "and 10 by default; --results is then a file",
    )


def _audit(options: argparse.Namespace) -> Any:
    from dpwg.data import RENDERED_SETS
    from dpwg.measure.membership import COUNT, REFERENCE, result_file
    from dpwg.release.folder import load_public

    count = COUNT if options.count is None else options.count
    if count < 2:
        raise ValueError(f"Expected count={count} >= 2.")
    if options.engine is not None:
        refuse_all_but(options, "engine", "count", "results", beside="--engine")
        return _audit_engine(options, count)
    if options.results and options.results.suffix == ".json":
        raise ValueError(
            f"Expected results={options.results} to be a folder; each checkpoint has a file in it."
        )
    reference = options.reference or REFERENCE
    public = load_public(reference)
    rows = []
    for name in options.checkpoints or _to_attack(options):
        attack = _attack(name, reference, public, count, options)
        if attack.data not in RENDERED_SETS:
            warn(f"What is found of {name} is as private as {attack.data!r}: keep it with them.")
        if options.results:
            kept(attack.to_json(), options.results / result_file(name))
        row = {"checkpoint": name, "epsilon": attack.epsilon, "members": attack.members}
        row |= {"nonmembers": attack.nonmembers, "auc": attack.auc}
        row |= {"auc_low": attack.auc_low, "auc_high": attack.auc_high}
        for found in attack.true_positives:
            at = f"{found.false_positive_rate:g}"
            row |= {f"true_positives_at_{at}": found.rate, f"low_{at}": found.low}
            row |= {f"high_{at}": found.high, f"allowed_{at}": found.allowed}
        rows.append(row)
    return rows


def _to_attack(options: argparse.Namespace) -> list[str]:
    """The checkpoints that saw sensitive images of which left-out ones are known."""
    from dpwg.data import RENDERED_SETS, fashion
    from dpwg.release.folder import checkpoint_names, find_checkpoint, load_card

    tests = [name for name in (*RENDERED_SETS, *fashion.SPLITS) if name.endswith("-test")]
    split = [f"{name.removesuffix('-test')}-train" for name in tests]
    cards = {name: load_card(find_checkpoint(name)) for name in checkpoint_names()}
    attacked = [
        name
        for name, card in cards.items()
        if card.epsilon != 0 and not card.of_groups and (options.others or card.dataset in split)
    ]
    if not attacked:
        raise ValueError(
            "Expected --checkpoint and --others, records like those that it was trained on, left "
            "out: there is no checkpoint of an embedded sensitive set, whose test set is known."
        )
    return attacked


def _attack(
    name: str, reference: str, public: Release, at_most: int, options: argparse.Namespace
) -> MembershipAttack:
    """One checkpoint's attack, on the very records that its card names and on others."""
    from dpwg.data import RENDERED_SETS, open_records
    from dpwg.measure.membership import calibrated_scores, check_reference, membership_attack
    from dpwg.method.encoders import open_encoder
    from dpwg.release.folder import find_checkpoint, load_release, named_weights_sha256

    release = load_release(name)
    card = release.card
    if card.epsilon == 0:
        raise ValueError(f"{name} saw no sensitive record: there is nothing to infer.")
    if card.of_groups:
        raise ValueError(
            f"Expected a checkpoint whose records are single images, found that {name} has groups "
            "of them; its promise is about whole groups, which this attack does not score."
        )
    check_reference(release, public)
    data = options.data or card.dataset
    if not options.others and not data.endswith("-train"):
        raise ValueError(f"Expected --others, records like those of data={data!r}, left out.")
    count = card.records if data in RENDERED_SETS else None
    members = open_records(data, count=count)
    if (members.name, len(members)) != (card.dataset, card.records):
        raise ValueError(
            f"Expected data={data!r} to be the {card.records:,} records of {card.dataset!r} that "
            f"{name} was trained on, found {len(members):,} of {members.name!r}."
        )
    others = open_records(options.others or f"{data.removesuffix('-train')}-test")
    if others.digest == members.digest:
        raise ValueError(f"Expected others={options.others!r} to be left out of the training set.")
    scores = []
    for records in (members, others):
        encoder = open_encoder(release.text_encoder)
        examples = encode_examples(records, release.tokenizer, encoder)
        part = examples.first(min(at_most, len(examples)))
        scores.append(calibrated_scores(release.model, public.model, part).double().numpy())
    return membership_attack(
        *scores,
        checkpoint=name,
        weights=named_weights_sha256(find_checkpoint(name)),
        reference=reference,
        data=members.name,
        others=others.name,
        epsilon=card.epsilon,
        delta=card.delta,
    )


def _audit_engine(options: argparse.Namespace, canaries: int) -> Any:
    """The one-run audit of the engine itself, once for each epsilon that it is to keep."""
    from dpwg.measure.engine_audit import GUESSES, audit_private_training, canary_plan

    rows = []
    for epsilon in tqdm(options.engine or (1.0, 3.0, 10.0), desc="training canaries"):
        plan, guesses = canary_plan(canaries, epsilon), canaries // GUESSES
        found = audit_private_training(
            plan, k_plus=guesses, k_minus=guesses, precision=AUDITED_PRECISION
        )
        row = {"target_epsilon": epsilon, "ledger_epsilon": found.ledger_epsilon}
        row |= {"proven_epsilon": found.bound.epsilon, "confidence": found.bound.confidence}
        row |= {"correct": found.bound.correct, "guesses": found.bound.guesses}
        row |= {"attacker": found.attacker, "precision": AUDITED_PRECISION}
        rows.append(row | asdict(plan))
    kept({"runs": rows}, options.results)
    return rows


def add_readme(verb: Verb) -> None:
    command = verb("readme", _readme, "rewrite the README's tables from cards and result files")
    command.add_argument("--file", type=Path, default=Path("README.md"))


def _readme(options: argparse.Namespace) -> Any:
    from dpwg.measure.readme import update

    update(options.file)
    return {"file": str(options.file)}
