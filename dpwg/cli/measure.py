"""`evaluate`, `attack`, `audit` and `bench`: what is known about releases and the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from dpwg.cli.console import Bars, kept, warn
from dpwg.cli.options import Data, Results, encode_examples
from dpwg.measure.membership import COUNT, REFERENCE
from dpwg.method.sampling import Sampling

if TYPE_CHECKING:
    from dpwg.data.records import Records
    from dpwg.measure.membership import MembershipAttack
    from dpwg.release.folder import Release

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench.py"
AUDITED_PRECISION = "float32"
"""What the released checkpoints were trained in."""
LEAST = 100
"""Records of each kind that an attack needs: below, no false-positive rate of 1 % can be told."""


def evaluate(
    checkpoints: Positional[tuple[str, ...]] = (),
    /,
    *,
    records: Data = Data(data="faces-test"),
    colours: int | None = None,
    settings: Sampling = Sampling(),
    results: Results = None,
) -> Any:
    """Measure checkpoints on held-out records: the loss of their codes.

    Args:
        checkpoints: all of the data set's family by default
        colours: draw the captions of so many faces instead, and tell which share of the colours
            that they name the pictures have; the options of sampling are for this
    """
    from dpwg.release.folder import checkpoint_names, find_checkpoint, load_card

    known, bars = checkpoint_names(), Bars()
    family = [name for name in known if name.startswith(f"{records.data.partition('-')[0]}/")]
    names = checkpoints or family or known
    held_out = records.records(bars)
    for name in names:
        if load_card(find_checkpoint(name)).dataset == held_out.name:
            raise ValueError(
                f"Expected data={held_out.name!r} not to be what {name} was trained on: what is "
                "measured there is private."
            )
    if colours is None:
        return kept(_losses(names, held_out, bars), results)
    return kept(_colours(names, held_out, settings, colours, bars), results)


def _losses(names: Sequence[str], records: Records, bars: Bars) -> dict[str, Any]:
    from dpwg.measure.quality import held_out_loss
    from dpwg.method.encoders import open_encoder
    from dpwg.release.folder import load_release

    rows = []
    for name in names:
        release = load_release(name)
        encoder = open_encoder(release.text_encoder)
        examples = encode_examples(records, release.tokenizer, encoder, bars)
        loss = held_out_loss(release.model, examples)
        rows.append({"name": name, "epsilon": release.card.epsilon, "loss": loss})
    return {"data": records.name, "records": len(records), "nats_per_code": rows}


def _colours(
    names: Sequence[str], records: Records, settings: Sampling, count: int, bars: Bars
) -> dict[str, Any]:
    from dpwg.measure.colours import codes_fidelity, colour_fidelity
    from dpwg.method.pipeline import DPWaveletPipeline
    from dpwg.release.folder import load_release
    from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, get_upsampler

    if not 1 <= count <= len(records):
        raise ValueError(f"Expected colours={count} in [1, {len(records)}], the records there are.")
    upsample, rows = get_upsampler(DEFAULT_UPSAMPLER), []
    for number, name in enumerate(names):
        bars("drawing for checkpoints", number, len(names))
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


def attack(
    checkpoints: Positional[tuple[str, ...]] = (),
    /,
    *,
    data: str | None = None,
    others: str | None = None,
    reference: str = REFERENCE,
    count: int = COUNT,
    results: Path | None = None,
) -> Any:
    """Attack checkpoints by membership inference: which records were they trained on?

    Args:
        checkpoints: by default all that were trained on sensitive images of which a test set is
            known, or with --others all that were trained on sensitive images
        data: the records it was trained on; by default what its card says
        others: records of the same kind, left out; the test set by default
        reference: the public model it began from
        count: the first records of each at most
        results: write a file for each checkpoint into this folder
    """
    from dpwg.data import RENDERED_SETS
    from dpwg.measure.membership import result_file
    from dpwg.privacy.curves import max_true_positive_rates
    from dpwg.release.folder import find_checkpoint, load_card, load_public

    if count < LEAST:
        raise ValueError(
            f"Expected count={count} to be {LEAST} or more: fewer records tell no rate of 1 %."
        )
    public, rows = load_public(reference), []
    for name in checkpoints or _attackable(others):
        found = _attack(name, reference, public, data, others, count)
        if found.data not in RENDERED_SETS:
            warn(f"What is found of {name} is as private as {found.data!r}: keep it with them.")
        if results:
            kept(found.to_json(), results / result_file(name))
        row = {"checkpoint": name, "epsilon": found.epsilon, "members": found.members}
        row |= {"nonmembers": found.nonmembers, "auc": found.auc}
        row |= {"auc_low": found.auc_low, "auc_high": found.auc_high}
        rates = [point.false_positive_rate for point in found.true_positives]
        allowed = max_true_positive_rates(load_card(find_checkpoint(name)).ledger, rates)
        for point, most in zip(found.true_positives, allowed, strict=True):
            if found.nonmembers * point.false_positive_rate < 1:
                continue
            at = f"{point.false_positive_rate:g}"
            row |= {f"true_positives_at_{at}": point.rate, f"low_{at}": point.low}
            row |= {f"high_{at}": point.high, f"allowed_{at}": most}
        rows.append(row)
    return rows


def _attackable(others: str | None) -> list[str]:
    """The checkpoints that saw sensitive images of which left-out ones are known."""
    from dpwg.data import SETS
    from dpwg.release.folder import checkpoint_names, find_checkpoint, load_card

    split = [f"{name}-train" for name, own in SETS.items() if "attack" in own.measures]
    cards = {name: load_card(find_checkpoint(name)) for name in checkpoint_names()}
    attacked = [
        name
        for name, card in cards.items()
        if card.kind != "public" and not card.of_groups and (others or card.dataset in split)
    ]
    if not attacked:
        raise ValueError(
            "Expected a checkpoint and --others, records like those that it was trained on, left "
            "out: there is no checkpoint of an embedded sensitive set, whose test set is known."
        )
    return attacked


def _attack(
    name: str, reference: str, public: Release, data: str | None, others: str | None, at_most: int
) -> MembershipAttack:
    """One checkpoint's attack, on the very records that its card names and on others."""
    from dpwg.data import RENDERED_SETS, open_records
    from dpwg.data.records import shared_images
    from dpwg.measure.membership import calibrated_scores, check_reference, membership_attack
    from dpwg.method.encoders import open_encoder
    from dpwg.release.folder import find_checkpoint, load_release, named_weights_sha256

    release = load_release(name)
    card = release.card
    if card.kind == "public":
        raise ValueError(f"{name} saw no sensitive record: there is nothing to infer.")
    if card.of_groups:
        raise ValueError(
            f"Expected a checkpoint whose records are single images, found that {name} has groups "
            "of them; its promise is about whole groups, which this attack does not score."
        )
    check_reference(release, public)
    data = data or card.dataset
    if not others and not data.endswith("-train"):
        raise ValueError(f"Expected --others, records like those of data={data!r}, left out.")
    members = open_records(data, count=card.records if data in RENDERED_SETS else None)
    if (members.name, len(members)) != (card.dataset, card.records):
        raise ValueError(
            f"Expected data={data!r} to be the {card.records:,} records of {card.dataset!r} that "
            f"{name} was trained on, found {len(members):,} of {members.name!r}."
        )
    left_out = open_records(others or f"{data.removesuffix('-train')}-test")
    if others and (shared := shared_images(members, left_out)):
        raise ValueError(
            f"Expected others={others!r} to be left out of the training set, found {shared:,} of "
            f"its {len(left_out):,} images in it: the attack would find nothing."
        )
    if (fewest := min(len(members), len(left_out))) < LEAST:
        raise ValueError(
            f"Expected {LEAST} or more records of each kind, found {fewest}: fewer mislead."
        )
    scores, bars, encoder = [], Bars(), open_encoder(release.text_encoder)
    for records in (members, left_out):
        examples = encode_examples(records, release.tokenizer, encoder, bars)
        part = examples.first(min(at_most, len(examples)))
        scores.append(calibrated_scores(release.model, public.model, part).double().numpy())
    return membership_attack(
        *scores,
        checkpoint=name,
        weights=named_weights_sha256(find_checkpoint(name)),
        reference=reference,
        data=members.name,
        others=left_out.name,
        epsilon=card.epsilon,
        delta=card.delta,
    )


def audit(
    *, epsilons: tuple[float, ...] = (1.0, 3.0, 10.0), count: int = COUNT, results: Results = None
) -> Any:
    """Audit the private engine: train canaries with it, and bound its epsilon from below.

    Args:
        epsilons: the promises that it is to keep, a run for each
        count: canaries
    """
    from dpwg.measure.engine_audit import GUESSES, audit_private_training, canary_plan

    plans = {epsilon: canary_plan(count, epsilon) for epsilon in epsilons}
    rows, guesses, bars = [], count // GUESSES, Bars()
    for number, (epsilon, plan) in enumerate(plans.items()):
        bars("training canaries", number, len(epsilons))
        found = audit_private_training(
            plan, k_plus=guesses, k_minus=guesses, precision=AUDITED_PRECISION
        )
        row: dict[str, Any] = {"target_epsilon": epsilon, "ledger_epsilon": found.ledger_epsilon}
        row |= {"proven_epsilon": found.bound.epsilon, "confidence": found.bound.confidence}
        row |= {"correct": found.bound.correct, "guesses": found.bound.guesses}
        row |= {"attacker": found.attacker, "precision": AUDITED_PRECISION}
        rows.append(row | asdict(plan))
    kept({"runs": rows}, results)
    return rows


def bench(
    *,
    checkpoint: str = "faces/public",
    micro_batches: tuple[int, ...] = (32, 64),
    precision: str = "auto",
    results: Results = None,
) -> Any:
    """Measure training, sampling and start-up on this machine, by a script of the checkout.

    Args:
        checkpoint: whose model is measured
        micro_batches: each way to compute a step takes its best
        precision: auto, bfloat16 or float32
    """
    if not BENCH.exists():
        raise FileNotFoundError(
            "The benchmark is a script of the repository, which an installed package does not "
            "have: `git clone` it and run `python -m dpwg bench` there."
        )
    words = [checkpoint, precision, *map(str, micro_batches)]
    environment = os.environ | {"PYTHONPATH": str(BENCH.parents[1])}
    command = [sys.executable, str(BENCH), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment)
    if done.returncode:
        raise ValueError(f"The benchmark ended with status {done.returncode}; see above.")
    return kept(json.loads(done.stdout), results)
