"""What is known about releases and the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from dpwg.cli.console import Bars, kept, warn
from dpwg.cli.options import Data, Results
from dpwg.data.records import Records
from dpwg.measure.membership import COUNT, REFERENCE
from dpwg.method.sampling import Sampling
from dpwg.release.folder import Release
from dpwg.training.encodings import encode_examples, encoded_root
from dpwg.training.examples import Examples

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench.py"
AUDITED_PRECISION = "float32"
"""What the released checkpoints were trained in."""


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
    from dpwg.measure.releases import check_held_out, colours_of, held_out_losses, held_out_of

    bars, names = Bars(), checkpoints or held_out_of(records.data)
    held_out = records.records(bars)
    check_held_out(names, held_out)
    _warn_of(held_out)
    if colours is None:
        return kept(held_out_losses(names, held_out, _encode), results)
    rows: list[dict[str, Any]] = []
    for row in colours_of(names, held_out, settings, colours):
        bars("drawing for checkpoints", len(rows), len(names))
        rows.append(row)
    return kept(rows[-1], results)


def quality(
    checkpoints: Positional[tuple[str, ...]] = (),
    /,
    *,
    records: Data = Data(data="celeba-test"),
    pictures: int = 1000,
    read: int = 10_000,
    settings: Sampling = Sampling(),
    results: Results = None,
) -> Any:
    """Draw the captions of held-out records, and measure the pictures beside the real ones.

    Args:
        checkpoints: all of the data set's family by default
        pictures: how many are drawn for each measure; distances shrink as they grow
        read: real training images that the readers of attributes are trained on
    """
    from dpwg.measure.releases import check_held_out, held_out_of, quality_of

    names = checkpoints or held_out_of(records.data)
    held_out = records.records(Bars())
    check_held_out(names, held_out)
    _warn_of(held_out)
    reports = quality_of(names, held_out, settings, pictures, read, encoded_root())
    return kept(Bars().train(reports), results)


def cost(*, results: Results = None) -> Any:
    """Count operations and activations of one private example, for DP-Wavelet and its rivals."""
    from dpwg.measure.cost import costs

    return kept({"networks": costs()}, results)


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
    from dpwg.measure.releases import attack_release, attackable
    from dpwg.privacy.curves import max_true_positive_rates
    from dpwg.release.folder import find_checkpoint, load_card

    rows: list[dict[str, Any]] = []
    for name in checkpoints or attackable(others):
        found = attack_release(
            name, reference=reference, data=data, others=others, count=count, encode=_encode
        )
        if found.data not in RENDERED_SETS:
            warn(f"What is found of {name} is as private as {found.data!r}: keep it with them.")
        if results:
            kept(found.to_json(), results / result_file(name))
        facts = ("checkpoint", "epsilon", "members", "nonmembers", "auc", "auc_low", "auc_high")
        row = {fact: getattr(found, fact) for fact in facts}
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


def _warn_of(records: Records) -> None:
    from dpwg.data.sets import SPLITS

    if records.name not in SPLITS:
        warn(f"What is measured on {records.name!r} is as private as it is: keep it with it.")


def _encode(records: Records, release: Release) -> Examples:
    from dpwg.method.encoders import open_encoder

    encoder = open_encoder(release.text_encoder)
    reports = encode_examples(records, encoder, release.tokenizer, encoded_root())
    examples: Examples = Bars().train(reports)
    return examples
