"""Releases measured by their names: the loss and the colours of held-out records, and attacks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from dpwg.data.records import Records, shared_images
from dpwg.data.sets import RENDERED_SETS, SETS, SPLITS, open_records
from dpwg.measure.attributes import train_readers
from dpwg.measure.colours import codes_fidelity, colour_fidelity
from dpwg.measure.membership import (
    MembershipAttack,
    calibrated_scores,
    check_reference,
    membership_attack,
)
from dpwg.measure.pictures import SAME, Reality, known_of, real_features
from dpwg.measure.quality import held_out_loss
from dpwg.method.generator import NATS
from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.method.sampling import Sampling
from dpwg.release.folder import (
    Release,
    checkpoint_names,
    find_checkpoint,
    load_card,
    load_public,
    load_release,
    named_weights_sha256,
)
from dpwg.training.examples import Examples
from dpwg.training.optimizer import Progress
from dpwg.training.run_state import fingerprint
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER, get_upsampler

LEAST = 100
"""Records of each kind that an attack needs: below, no false-positive rate of 1 % can be told."""
Encode = Callable[[Records, Release], Examples]
"""Makes examples of records, as a release reads them."""


def held_out_of(data: str) -> list[str]:
    """The checkpoints that a held-out set is for: those of its family, or all. Rivals beside them
    have codes of their own, whose losses are no match.
    """
    known, family = checkpoint_names(), data.partition("-")[0]
    return [name for name in known if name.rpartition("/")[0] == family] or known


def check_held_out(names: Sequence[str], records: Records) -> None:
    """Raise ValueError for records that one of the checkpoints was trained on."""
    for name in names:
        if load_card(find_checkpoint(name)).dataset == records.name:
            raise ValueError(
                f"Expected data={records.name!r} not to be what {name} was trained on: what is "
                "measured there is private."
            )


def held_out_losses(names: Sequence[str], records: Records, encode: Encode) -> dict[str, Any]:
    """Per-code NLL in nats of each checkpoint on the records, as a result file has it."""
    rows = []
    for name in names:
        release = load_release(name)
        _check_unit(name, release)
        loss = held_out_loss(release.model, encode(records, release))
        rows.append({"name": name, "epsilon": release.card.epsilon, "loss": loss})
    return {"data": records.name, "records": len(records), "nats_per_code": rows}


def _check_unit(name: str, release: Release) -> None:
    if release.model.unit != NATS:
        raise ValueError(
            f"Expected a model of codes, found that the losses of {name} are {release.model.unit}: "
            "one draw of it tells little. `measure quality` measures its pictures."
        )


def colours_of(
    names: Sequence[str], records: Records, settings: Sampling, count: int
) -> Iterator[dict[str, Any]]:
    """A row for each checkpoint: how its pictures of `count` captions keep to their colours.

    The last is the whole result file.
    """
    if not 1 <= count <= len(records):
        raise ValueError(f"Expected colours={count} in [1, {len(records)}], the records there are.")
    upsample, rows = get_upsampler(DEFAULT_UPSAMPLER), []
    for name in names:
        pipeline = DPWaveletPipeline.from_pretrained(name)
        found = colour_fidelity(pipeline, records, settings, count, upsample)
        row = {"name": name, "epsilon": pipeline.release.card.epsilon}
        rows.append(row | pipeline.choice(settings) | found.to_json())
        yield rows[-1]
    tokenizer = load_release(names[0]).tokenizer
    sampling = settings.to_json()
    del sampling["candidates"]  # each checkpoint has its own
    yield {
        "data": records.name,
        "sampling": sampling,
        "upsampler": upsample.name,
        "own_codes": codes_fidelity(tokenizer, upsample, records, count).to_json(),
        "checkpoints": rows,
    }


def quality_of(
    names: Sequence[str], records: Records, settings: Sampling, count: int, read: int, cache: Path
) -> Generator[Progress, None, dict[str, Any]]:
    """Pictures of each checkpoint beside the first `count` of the records, as a result file has it.

    Attributes are read, where the set has them, by readers of its first `read` training images,
    which are private: what they find depends on those without noise, a little, and no epsilon
    covers it. The upsampler is each checkpoint's own.
    """
    if not SAME <= count <= len(records):
        raise ValueError(f"Expected pictures={count} in [{SAME}, {len(records)}], the records.")
    family, readers = records.name.partition("-")[0], {}
    if records.name in SPLITS and "attributes" in SETS[family].measures:
        train = open_records(f"{family}-train")
        feature_ND = yield from real_features(train, min(read, len(train)), cache)
        readers = train_readers(feature_ND, known_of(train, len(feature_ND)))
    real_ND = yield from real_features(records, len(records), cache)
    reality = Reality(records=records, feature_ND=real_ND, readers=readers)
    rows, ceilings = [], {}
    for name in names:
        pipeline = DPWaveletPipeline.from_pretrained(name)
        upsampler = get_upsampler(pipeline.release.upsampler or DEFAULT_UPSAMPLER)
        tokenizer = pipeline.release.tokenizer
        if (own := (upsampler.name, fingerprint(tokenizer))) not in ceilings:
            ceilings[own] = yield from reality.ceiling(tokenizer, upsampler, count)
        row = {"name": name, "epsilon": pipeline.release.card.epsilon, "upsampler": upsampler.name}
        found = yield from reality.quality(name, pipeline, settings, upsampler, count)
        rows.append(row | pipeline.choice(settings) | found)
    sampling = settings.to_json()
    del sampling["candidates"]  # each checkpoint has its own
    return {
        "data": records.name,
        "features": "EfficientNet-lite0",
        "sampling": sampling,
        "readers": {
            "data": train.name,
            "images": len(feature_ND),
            "right": reality.reading,
            "note": "trained without noise; epsilon does not cover what depends on them",
        }
        if readers
        else None,
        "floor": reality.floor(count).to_json(),
        "ceilings": [
            {"upsampler": upsampler, "codes": codes[:12]} | near
            for (upsampler, codes), near in ceilings.items()
        ],
        "checkpoints": rows,
    }


def attackable(others: str | None) -> list[str]:
    """The checkpoints that saw sensitive images of which left-out ones are known, or given."""
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


def attack_release(
    name: str, *, reference: str, data: str | None, others: str | None, count: int, encode: Encode
) -> MembershipAttack:
    """Attack one checkpoint on the very records that it was trained on and on others.

    `data` and `others` are by default the set that its card names, and its test set. At most
    `count` of each are scored. Raises ValueError for records that tell nothing.
    """
    if count < LEAST:
        raise ValueError(
            f"Expected count={count} to be {LEAST} or more: fewer records tell no rate of 1 %."
        )
    release, public = load_release(name), load_public(reference)
    card = release.card
    if card.kind == "public":
        raise ValueError(f"{name} saw no sensitive record: there is nothing to infer.")
    if card.of_groups:
        raise ValueError(
            f"Expected a checkpoint whose records are single images, found that {name} has groups "
            "of them; its promise is about whole groups, which this attack does not score."
        )
    _check_unit(name, release)
    check_reference(release, public)
    data = data or card.dataset
    if not others and not data.endswith("-train"):
        raise ValueError(f"Expected --others, records like those of data={data!r}, left out.")
    members = open_records(data, count=card.records if data in RENDERED_SETS else None)
    told = members.name if card.dataset in SPLITS else card.dataset  # owners may name none
    if (told, len(members)) != (card.dataset, card.records):
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
    scores = []
    for records in (members, left_out):
        examples = encode(records, release)
        part = examples.first(min(count, len(examples)))
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
