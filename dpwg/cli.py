"""The command line. Every verb prints for people, or one JSON value with `--json`."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    from torch import Tensor

    from dpwg.checkpoint import Release
    from dpwg.data import Records
    from dpwg.membership import MembershipAttack
    from dpwg.privacy.accounting import PrivacyPlan
    from dpwg.training.progress import Progress
    from dpwg.training.ranks import Ranks
    from dpwg.training.rehearsal import Rehearsal

T = TypeVar("T")
PATH_HELP = "a folder of images with their captions; FORMAT:PATH where its format is not clear"
UNBOUND_HELP = "publish without privacy too: nothing in the records is sensitive"
PUBLIC_HELP = "declare that nothing in a folder given as --data is sensitive"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns 0; or 2 after one clear line on bad input, or a report of faults.

    `data check` is the verb `check`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:2] == ["data", "check"]:
        del words[0]
    options = _parser().parse_args(words)
    try:
        answer = options.run(options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"dpwg: {error}", file=sys.stderr)
        return 2
    if answer is None:
        return 0
    if options.json:
        print(json.dumps(_plain(answer), indent=2, allow_nan=False))
    else:
        print(_table(answer))
    return 2 if isinstance(answer, dict) and answer.get("wrong") else 0


def _data(options: argparse.Namespace) -> Any:
    from dpwg.data import RENDERED_SETS, open_records, render

    answer = []
    if unknown := sorted(set(options.sets) - set(RENDERED_SETS)):
        raise ValueError(f"Expected sets={unknown} in {sorted(RENDERED_SETS)}.")
    for name in options.sets or RENDERED_SETS:
        total = options.count or RENDERED_SETS[name]
        _count(render(name, count=options.count), total, f"rendering {name}")
        records = open_records(name, count=options.count)
        answer.append({"name": name, "records": len(records), "digest": records.digest})
    return answer


def _check(options: argparse.Namespace) -> Any:
    from dpwg.data.check import check_records
    from dpwg.data.formats import open_files

    records = open_files(options.path)
    with _bar(f"reading {records.name}") as progress:
        report = check_records(
            records, column=None if options.unit == "image" else options.unit, progress=progress
        )
    answer = report.to_json()
    return answer if options.json else {name: _listed(value) for name, value in answer.items()}


def _tokenizer(options: argparse.Namespace) -> Any:
    import torch

    from dpwg.checkpoint import checkpoint_root, load_tokenizer, save_tokenizer
    from dpwg.config import TokenizerConfig
    from dpwg.data import open_records
    from dpwg.data.tensors import coarse_batches
    from dpwg.evaluate import tokenizer_quality
    from dpwg.tokenizer import SpectralTokenizer
    from dpwg.training.ranks import Ranks
    from dpwg.training.tokenizer import TokenizerTraining, train_tokenizer

    folder = options.out or checkpoint_root() / "tokenizer"
    if options.evaluate:
        quality = tokenizer_quality(load_tokenizer(folder), open_records(options.evaluate))
        return _kept({"data": options.evaluate, **quality.to_json()}, options.results)
    records = _public_records(options)
    torch.manual_seed(options.seed)
    tokenizer = SpectralTokenizer(TokenizerConfig(codebook_sizes=tuple(options.codebook_sizes)))
    size = tokenizer.config.coarse_size
    images_NCHW = torch.cat(list(tqdm(coarse_batches(records, size), desc="coarse images")))
    settings = _settings(TokenizerTraining, options)
    ranks = Ranks.from_environment()
    _train(train_tokenizer(tokenizer, images_NCHW, settings, ranks), "tokenizer", ranks)
    if not ranks.leads:
        return None
    save_tokenizer(folder, tokenizer.cpu())
    return {"folder": str(folder), "steps": settings.steps}


def _upsampler(options: argparse.Namespace) -> Any:
    import numpy as np
    import torch

    from dpwg.checkpoint import (
        UPSAMPLER,
        checkpoint_root,
        load_tokenizer,
        save_superresolution,
    )
    from dpwg.config import SuperResolutionConfig
    from dpwg.data import open_records
    from dpwg.evaluate import upsampler_quality
    from dpwg.superresolution import SuperResolution
    from dpwg.training.ranks import Ranks
    from dpwg.training.superresolution import SuperResolutionTraining, train_superresolution
    from dpwg.upsample import UPSAMPLERS, get_upsampler

    tokenizer = load_tokenizer(options.tokenizer or checkpoint_root() / "tokenizer")
    if options.evaluate:
        records = open_records(options.evaluate)
        rows = [
            upsampler_quality(get_upsampler(name), tokenizer, records, options.count or 500)
            for name, _ in tqdm(UPSAMPLERS, desc="upsamplers")
        ]
        answer = {"data": options.evaluate, "upsamplers": [row.to_json() for row in rows]}
        return _kept(answer, options.results)
    records = _public_records(options)
    torch.manual_seed(options.seed)
    model = SuperResolution(SuperResolutionConfig(coarse_size=tokenizer.config.coarse_size))
    size = model.config.coarse_size << model.config.levels
    settings = _settings(SuperResolutionTraining, options)
    images_NHWC = np.empty((min(settings.images, len(records)), size, size, 3), np.uint8)
    for index in tqdm(range(len(images_NHWC)), desc="images"):
        images_NHWC[index] = records[index].image(size)
    images_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)
    ranks = Ranks.from_environment()
    _train(
        train_superresolution(model, tokenizer, images_NCHW, settings, ranks), "upsampler", ranks
    )
    if not ranks.leads:
        return None
    folder = options.out or checkpoint_root() / UPSAMPLER
    save_superresolution(folder, model.cpu())
    return {"folder": str(folder), "steps": settings.steps}


def _pretrain(options: argparse.Namespace) -> Any:
    import torch

    from dpwg.checkpoint import (
        Release,
        checkpoint_root,
        load_public,
        load_tokenizer,
        save_release,
    )
    from dpwg.inputs import public_inputs
    from dpwg.model import WaveletGPT
    from dpwg.pipeline import default_encoder
    from dpwg.privacy.accounting import Ledger
    from dpwg.privacy.card import PrivacyCard
    from dpwg.training.pretrain import Pretraining, pretrain
    from dpwg.training.ranks import Ranks

    ranks = Ranks.from_environment()
    tokenizer_folder = options.tokenizer or checkpoint_root() / "tokenizer"
    tokenizer = load_tokenizer(tokenizer_folder)
    records = _public_records(options)
    examples = _examples(records, tokenizer, ranks)
    torch.manual_seed(options.seed)
    model = WaveletGPT.for_tokenizer(tokenizer)
    if options.base:
        model.load_state_dict(load_public(options.base).model.state_dict())
    settings = _settings(Pretraining, options)
    folder = _new_or_resumed(options.run_folder, resume=options.resume)
    _train(pretrain(model, examples, settings, folder, ranks), "pretraining", ranks)
    if not ranks.leads:
        return None
    card = PrivacyCard.from_ledger(
        Ledger(),
        delta=options.delta,
        dataset="none: public data only",
        records=0,
        max_grad_norm=None,
        public_inputs=public_inputs(records.name, len(records)),
        target_epsilon=0.0,
    )
    release = Release(
        model=model.cpu(), tokenizer=tokenizer, card=card, text_encoder=default_encoder().digest
    )
    save_release(options.out, release, tokenizer_folder=tokenizer_folder)
    return {"folder": str(options.out), "steps": settings.steps}


def _finetune(options: argparse.Namespace) -> Any:
    import torch

    from dpwg.checkpoint import Release, load_public, save_release
    from dpwg.data.groups import group_numbers
    from dpwg.privacy.accounting import PrivacyPlan
    from dpwg.privacy.card import PrivacyCard
    from dpwg.training.finetune import Finetuning, PrivateTraining
    from dpwg.training.ranks import Ranks
    from dpwg.training.rehearsal import rehearse

    ranks = Ranks.from_environment()
    run_folder = None if options.plan else _run_folder(options)
    base = load_public(options.base)
    records = _records(options, ranks)
    group_I, units = None, len(records)
    if options.unit != "image":
        group_I = torch.tensor(group_numbers(records, options.unit))
        units = int(group_I.max()) + 1
    left_out = len(getattr(records, "left_out", ()))
    sizes = {
        "records": units,
        "batch_size": min(4096, -(-units // 12)) if options.batch is None else options.batch,
        "steps": options.steps,
        "delta": options.delta,
        "max_grad_norm": options.max_grad_norm,
    }
    target = None
    if options.epsilon == math.inf:
        plan = PrivacyPlan(**sizes, noise_multiplier=0.0)
    elif options.epsilon is not None:
        target = options.epsilon
        plan = PrivacyPlan.calibrated(**sizes, target_epsilon=target)
    elif options.noise_multiplier > 0:
        plan = PrivacyPlan(**sizes, noise_multiplier=options.noise_multiplier)
    else:
        raise ValueError(
            f"Expected noise-multiplier={options.noise_multiplier} > 0; pass --epsilon inf to "
            "train without privacy."
        )
    settings = _settings(Finetuning, options)
    if options.plan:
        told = rehearse(base.model, plan, settings, ranks)
        counts = {"unit": options.unit, "images": len(records), "left_out": left_out}
        return _plan(records.name, counts, plan, told) if ranks.leads else None
    training = PrivateTraining(
        base.model.requires_grad_(True),
        _examples(records, base.tokenizer, ranks, group_I, lines=options.reports),
        plan,
        settings,
        run_folder,
        ranks=ranks,
    )
    _train(training.run(), "fine-tuning", ranks, lines=options.reports)
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
        model=base.model.cpu(), tokenizer=base.tokenizer, card=card, text_encoder=base.text_encoder
    )
    save_release(options.out, release, tokenizer_folder=options.tokenizer)
    answer = {
        "folder": str(options.out),
        "epsilon": card.epsilon,
        "steps": card.steps,
        "unit": options.unit,
        "records": card.records,
        "images": len(records),
        "left_out": left_out,
    }
    if options.reports:
        return _report({"stage": "release", **answer})
    return answer


def _sample(options: argparse.Namespace) -> Any:
    from PIL import Image

    from dpwg.pipeline import DPWaveletPipeline
    from dpwg.sampling import Sampling
    from dpwg.spectra import bands_figure
    from dpwg.upsample import DEFAULT_UPSAMPLER

    if options.captions is not None:
        return _export(options)
    count = 1 if options.n is None else options.n
    if count < 1:
        raise ValueError(f"Expected n={count} >= 1.")
    pipeline = DPWaveletPipeline.from_pretrained(options.checkpoint, revision=options.revision)
    result = pipeline(
        [options.caption] * count,
        seed=options.seed,
        settings=_settings(Sampling, options),
        upsampler=options.upsampler or DEFAULT_UPSAMPLER,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for index, (coarse, image) in enumerate(zip(result.coarse, result.image, strict=True)):
        Image.fromarray(coarse).save(options.out / f"coarse-{index}.png")
        Image.fromarray(image).save(options.out / f"image-{index}.png")
    bands_figure(result.image[0] / 255.0, levels=len(result.bands) - 1).save(
        options.out / "bands.png"
    )
    answer = {"checkpoint": options.checkpoint, **result.to_json()}
    (options.out / "result.json").write_text(json.dumps(answer, indent=2) + "\n")
    return answer


def _export(options: argparse.Namespace) -> Any:
    from dpwg.data.prompts import read_captions
    from dpwg.export import Export, captions_told, export_dataset, parse_shard, shard_images
    from dpwg.pipeline import DPWaveletPipeline
    from dpwg.sampling import Sampling

    if options.n is not None:
        raise ValueError(f"Expected no n={options.n} with --captions; pass --per-caption.")
    shard = parse_shard(options.shard or _rank() or "0/1")
    pipeline = DPWaveletPipeline.from_pretrained(options.checkpoint, revision=options.revision)
    public = options.captions_are_public
    captions = read_captions(
        options.captions, private_set=pipeline.release.card.dataset, public=public
    )
    told = captions_told(options.captions, captions, public=public)
    export = _settings(
        Export,
        options,
        captions=captions,
        captions_from=told,
        sampling=_settings(Sampling, options),
    )
    is_folder = Path(options.checkpoint).is_dir()
    checkpoint = Path(options.checkpoint).resolve().name if is_folder else options.checkpoint
    total = shard_images(export, shard)
    done = export_dataset(pipeline, export, options.out, checkpoint=checkpoint, shard=shard)
    _count(done, total, f"drawing part {shard[0]} of {shard[1]}" if shard[1] > 1 else "drawing")
    return {
        "folder": str(options.out),
        "images": total,
        "whole": (options.out / "README.md").exists(),
        "epsilon": pipeline.release.card.epsilon,
    }


def _rank() -> str | None:
    """The shard of a process that `torchrun` started."""
    if "WORLD_SIZE" not in os.environ:
        return None
    return f"{os.environ['RANK']}/{os.environ['WORLD_SIZE']}"


def _push(options: argparse.Namespace) -> Any:
    from dpwg.checkpoint import load_release
    from dpwg.hub import push

    address = push(
        load_release(options.checkpoint),
        options.name,
        revision=options.revision,
        private=options.private,
        license=options.license,
        without_bound=options.without_bound,
    )
    return {"checkpoint": options.checkpoint, "commit": address}


def _space(options: argparse.Namespace) -> Any:
    from dpwg.space import write_space

    files = write_space(options.out, options.checkpoints, without_bound=options.without_bound)
    return {"folder": str(options.out), "files": len(files), "bytes": sum(files.values())}


def _list(options: argparse.Namespace) -> Any:
    from dpwg.checkpoint import checkpoint_names, describe

    return [describe(name) for name in checkpoint_names()]


def _account(options: argparse.Namespace) -> Any:
    from dpwg.privacy.accounting import calibrate_noise, check_delta, epsilons

    check_delta(options.delta, records=options.records)
    question = {
        "sampling_rate": options.batch / options.records,
        "steps": options.steps,
        "delta": options.delta,
    }
    noise = options.noise_multiplier
    if noise is None:
        noise = calibrate_noise(**question, target_epsilon=options.epsilon)
    spent = epsilons(**question, noise_multiplier=noise)
    return {
        **question,
        "records": options.records,
        "batch": options.batch,
        "noise_multiplier": noise,
        "epsilon": spent.pld,
        "epsilon_pld": spent.pld,
        "epsilon_prv": spent.prv,
        "epsilon_rdp": spent.rdp,
    }


def _bench(options: argparse.Namespace) -> Any:
    from dpwg.bench import measure

    answer = measure(options.checkpoint, micro_batches=options.micro_batches)
    return _kept(answer, options.results)


def _evaluate(options: argparse.Namespace) -> Any:
    from dpwg.checkpoint import checkpoint_names, load_release
    from dpwg.evaluate import held_out_loss, sheet
    from dpwg.sampling import Sampling

    names = options.checkpoints or checkpoint_names()
    if options.sheet:
        captions = options.captions.read_text().splitlines()
        picture = sheet(names, captions, seed=options.seed, settings=_settings(Sampling, options))
        picture.save(options.sheet)
        return {"sheet": str(options.sheet), "checkpoints": names, "captions": captions}
    records = _records(options)
    rows = []
    for name in names:
        release = load_release(name)
        if release.card.dataset == records.name:
            raise ValueError(
                f"Expected data={records.name!r} not to be what {name} was trained on: its loss "
                "there is private."
            )
        examples = _examples(records, release.tokenizer)
        loss = held_out_loss(release.model, examples)
        rows.append({"name": name, "epsilon": release.card.epsilon, "loss": loss})
    answer = {"data": records.name, "records": len(records), "nats_per_code": rows}
    return _kept(answer, options.results)


def _audit(options: argparse.Namespace) -> Any:
    from dpwg.checkpoint import checkpoint_names, find_checkpoint, load_card, load_public
    from dpwg.membership import result_file

    if options.count < 2:
        raise ValueError(f"Expected count={options.count} >= 2.")
    if options.engine is not None:
        return _audit_engine(options)
    if options.results and options.results.suffix == ".json":
        raise ValueError(
            f"Expected results={options.results} to be a folder; each checkpoint has a file in it."
        )
    public = load_public(options.reference)
    trained = [n for n in checkpoint_names() if load_card(find_checkpoint(n)).epsilon != 0]
    rows = []
    for name in options.checkpoints or trained:
        attack = _attack(name, public, options)
        if options.results:
            _kept(attack.to_json(), options.results / result_file(name))
        row = {"checkpoint": name, "epsilon": attack.epsilon, "members": attack.members}
        row |= {"nonmembers": attack.nonmembers, "auc": attack.auc}
        row |= {"auc_low": attack.auc_low, "auc_high": attack.auc_high}
        for found in attack.true_positives:
            at = f"{found.false_positive_rate:g}"
            row |= {f"true_positives_at_{at}": found.rate, f"low_{at}": found.low}
            row |= {f"high_{at}": found.high, f"allowed_{at}": found.allowed}
        rows.append(row)
    return rows


def _attack(name: str, public: Release, options: argparse.Namespace) -> MembershipAttack:
    """One checkpoint's attack, on the very records that its card names and on others."""
    from dpwg.checkpoint import find_checkpoint, load_release, weights_digest
    from dpwg.data import open_records
    from dpwg.membership import calibrated_scores, check_reference, membership_attack

    release = load_release(name)
    card = release.card
    if card.epsilon == 0:
        raise ValueError(f"{name} saw no sensitive record: there is nothing to infer.")
    check_reference(release, public)
    data = options.data or card.dataset
    if not options.others and not data.endswith("-train"):
        raise ValueError(f"Expected --others, records like those of data={data!r}, left out.")
    members = open_records(data, count=card.records)
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
        examples = _examples(records, release.tokenizer)
        part = examples.first(min(options.count, len(examples)))
        scores.append(calibrated_scores(release.model, public.model, part).double().numpy())
    return membership_attack(
        *scores,
        checkpoint=name,
        weights=weights_digest(find_checkpoint(name)),
        reference=options.reference,
        data=members.name,
        others=others.name,
        epsilon=card.epsilon,
        delta=card.delta,
    )


def _audit_engine(options: argparse.Namespace) -> Any:
    """The one-run audit of the engine itself, once for each epsilon that it is to keep."""
    from dpwg.training.audit import GUESSES, audit_private_training, canary_plan
    from dpwg.training.finetune import Finetuning

    rows = []
    for epsilon in tqdm(options.engine or (1.0, 3.0, 10.0), desc="training canaries"):
        plan, guesses = canary_plan(options.count, epsilon), options.count // GUESSES
        found = audit_private_training(
            plan, k_plus=guesses, k_minus=guesses, precision=Finetuning.precision
        )
        row = {"target_epsilon": epsilon, "ledger_epsilon": found.ledger_epsilon}
        row |= {"proven_epsilon": found.bound.epsilon, "confidence": found.bound.confidence}
        row |= {"correct": found.bound.correct, "guesses": found.bound.guesses}
        row |= {"attacker": found.attacker, "precision": Finetuning.precision}
        rows.append(row | asdict(plan))
    _kept({"runs": rows}, options.results)
    return rows


def _readme(options: argparse.Namespace) -> Any:
    from dpwg.readme import update

    update(options.file)
    return {"file": str(options.file)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dpwg", description="Differentially private text-to-image generation."
    )
    verbs = parser.add_subparsers(required=True, metavar="verb")

    def verb(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = verbs.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="print one JSON value")
        command.set_defaults(run=run)
        return command

    text = "render the embedded data sets; `data check PATH` reports what is wrong with yours"
    data = verb("data", _data, text)
    data.add_argument("sets", nargs="*", help="which ones; all by default")
    data.add_argument("--count", type=int, help="only the first records")

    text = (
        "report what is wrong with a data set on disk; writes nothing, exits with 2 if anything is"
    )
    check = verb("check", _check, text)
    check.add_argument("path", help=PATH_HELP)
    _add_unit(check)

    tokenizer = verb("tokenizer", _tokenizer, "train the spectral tokenizer on public images")
    _add_data(tokenizer, "public-train")
    tokenizer.add_argument("--public", action="store_true", help=PUBLIC_HELP)
    tokenizer.add_argument("--codebook-sizes", type=int, nargs="+", default=[1024, 1024, 1024])
    tokenizer.add_argument("--steps", type=int, help="optimizer steps")
    tokenizer.add_argument("--seed", type=int, default=0)
    tokenizer.add_argument("--out", type=Path, help="folder; checkpoints/tokenizer by default")
    tokenizer.add_argument("--evaluate", metavar="SET", help="measure PSNR on a set instead")
    tokenizer.add_argument("--results", type=Path, help="write the measurement to this file")

    upsampler = verb("upsampler", _upsampler, "train the super-resolution model on public images")
    _add_data(upsampler, "public-train")
    upsampler.add_argument("--public", action="store_true", help=PUBLIC_HELP)
    upsampler.add_argument("--tokenizer", type=Path, help="checkpoints/tokenizer by default")
    upsampler.add_argument("--steps", type=int)
    upsampler.add_argument("--seed", type=int, default=0)
    upsampler.add_argument("--out", type=Path, help="folder; checkpoints/upsampler by default")
    upsampler.add_argument("--evaluate", metavar="SET", help="compare all upsamplers on a set")
    upsampler.add_argument("--results", type=Path, help="write the measurement to this file")

    pretrain = verb("pretrain", _pretrain, "train WaveletGPT on public images and captions")
    _add_data(pretrain, "public-train")
    pretrain.add_argument("--public", action="store_true", help=PUBLIC_HELP)
    pretrain.add_argument("--tokenizer", type=Path, help="checkpoints/tokenizer by default")
    pretrain.add_argument("--base", help="public checkpoint to start from")
    pretrain.add_argument("--steps", type=int)
    pretrain.add_argument("--batch", type=int, help="examples a step")
    pretrain.add_argument("--learning-rate", type=float)
    pretrain.add_argument("--seed", type=int, default=0)
    pretrain.add_argument("--delta", type=float, default=1e-5)
    pretrain.add_argument("--run-folder", type=Path, default=Path("runs/pretrain"))
    pretrain.add_argument("--resume", action="store_true", help="go on with the run folder")
    pretrain.add_argument("--out", type=Path, default=Path("checkpoints/faces/public"))

    finetune = verb("finetune", _finetune, "fine-tune privately on sensitive images and captions")
    _add_data(finetune, "faces-train")
    _add_unit(finetune)
    finetune.add_argument("--base", default="faces/public", help="checkpoint to start from")
    promise = finetune.add_mutually_exclusive_group(required=True)
    promise.add_argument("--epsilon", type=float, help="inf: without privacy")
    promise.add_argument("--noise-multiplier", type=float, help="epsilon then follows")
    finetune.add_argument("--delta", type=float, default=1e-5)
    finetune.add_argument(
        "--batch",
        type=int,
        help="expected size of a batch; a twelfth of the records by default, at most 4096",
    )
    finetune.add_argument("--steps", type=int, default=40)
    finetune.add_argument("--max-grad-norm", type=float, default=0.1)
    finetune.add_argument("--learning-rate", type=float)
    finetune.add_argument("--warmup", type=int)
    finetune.add_argument("--ema-decay", type=float)
    finetune.add_argument("--lora-rank", type=int, help="0 trains every parameter")
    finetune.add_argument("--micro-batch", type=int)
    finetune.add_argument("--precision", choices=("bfloat16", "float32"))
    finetune.add_argument("--tokenizer", type=Path, help="refer to this folder, do not copy it")
    finetune.add_argument("--run-folder", type=Path, help="private training state")
    finetune.add_argument("--resume", action="store_true", help="go on with the run folder")
    finetune.add_argument("--save-every", type=int, help="steps from one saved state to the next")
    finetune.add_argument(
        "--reports",
        action="store_true",
        help="print a JSON line for every report instead of bars; its losses are private",
    )
    finetune.add_argument("--out", type=Path, help="release folder")
    finetune.add_argument(
        "--plan",
        action="store_true",
        help="show noise, epsilon, memory and time; trains nothing, decodes no image but for "
        "--skip-broken",
    )

    sample = verb("sample", _sample, "generate images of a caption, or a data set of captions")
    sample.add_argument("--checkpoint", default="faces/eps-10")
    sample.add_argument("--revision", help="branch, tag or commit of a checkpoint on the hub")
    what = sample.add_mutually_exclusive_group(required=True)
    what.add_argument("--caption")
    what.add_argument(
        "--captions", metavar="FILE", help="a data set: a file of lines, or public:N templates"
    )
    sample.add_argument("--n", type=int, help="images of the caption, 1 by default")
    sample.add_argument("--per-caption", type=int, help="images of each of the captions")
    sample.add_argument("--format", help="imagefolder (default), webdataset or parquet")
    sample.add_argument("--shard", metavar="i/n", help="draw the i-th of n shares, from 0")
    sample.add_argument("--batch", type=int, help="images at a time")
    sample.add_argument("--part", type=int, help="images in a folder, tar or Parquet file")
    sample.add_argument("--license", help="of the data set, for its card; apache-2.0 by default")
    sample.add_argument(
        "--captions-are-public",
        action="store_true",
        help="declare that nothing in the captions is sensitive",
    )
    sample.add_argument("--seed", type=int, default=0)
    _add_sampling(sample)
    sample.add_argument("--upsampler", help="bicubic, realesrgan-anime (default), -photo, -video")
    sample.add_argument("--out", type=Path, required=True)

    push = verb("push", _push, "publish a checkpoint with its model card on the Hugging Face Hub")
    push.add_argument("checkpoint", help="a local checkpoint's name, or a release folder")
    push.add_argument("name", help="where to, as user/name")
    push.add_argument("--revision", help="branch; main by default")
    push.add_argument("--private", action="store_true", help="hide the repository from others")
    push.add_argument("--license", default="apache-2.0", help="of the weights, for the model card")
    push.add_argument("--without-bound", action="store_true", help=UNBOUND_HELP)

    space = verb("space", _space, "write the app as a folder for Hugging Face Spaces")
    space.add_argument("--out", type=Path, required=True, help="a new folder")
    space.add_argument("--checkpoints", nargs="+", default=[], help="all with a bound by default")
    space.add_argument("--without-bound", action="store_true", help=UNBOUND_HELP)

    verb("list", _list, "show every checkpoint with its privacy figures")

    account = verb("account", _account, "answer with noise and epsilon, by PLD, PRV and RDP")
    account.add_argument("--records", type=int, required=True)
    account.add_argument("--batch", type=int, required=True)
    account.add_argument("--steps", type=int, required=True)
    account.add_argument("--delta", type=float, default=1e-5)
    known = account.add_mutually_exclusive_group(required=True)
    known.add_argument("--epsilon", type=float)
    known.add_argument("--noise-multiplier", type=float)

    bench = verb("bench", _bench, "measure training, sampling and start-up on this machine")
    bench.add_argument("--checkpoint", default="faces/public")
    bench.add_argument(
        "--micro-batches", type=int, nargs="+", default=[32, 64], help="each way takes its best"
    )
    bench.add_argument("--results", type=Path, help="write the measurement to this file")

    evaluate = verb("evaluate", _evaluate, "measure checkpoints on held-out records")
    evaluate.add_argument("checkpoints", nargs="*", help="all by default")
    _add_data(evaluate, "faces-test")
    evaluate.add_argument("--results", type=Path, help="write the measurement to this file")
    evaluate.add_argument("--sheet", type=Path, help="draw captions by checkpoints instead")
    evaluate.add_argument("--captions", type=Path, default=Path("examples/captions.txt"))
    evaluate.add_argument("--seed", type=int, default=0)
    _add_sampling(evaluate)

    audit = verb("audit", _audit, "attack a checkpoint: which records was it trained on?")
    audit.add_argument(
        "--checkpoint",
        action="append",
        dest="checkpoints",
        help="may be repeated; all that saw sensitive records by default",
    )
    audit.add_argument("--reference", default="faces/public", help="the public model it began from")
    audit.add_argument(
        "--data", help="the records it was trained on; by default what its card says"
    )
    audit.add_argument(
        "--others", help="records of the same kind, left out; the test set by default"
    )
    audit.add_argument(
        "--count", type=int, default=5000, help="the first records of each at most, or the canaries"
    )
    audit.add_argument(
        "--results", type=Path, help="write a file for each checkpoint into this folder"
    )
    audit.add_argument(
        "--engine",
        type=float,
        nargs="*",
        metavar="EPSILON",
        help="train canaries by the private engine instead, and bound its epsilon from below: 1, 3 "
        "and 10 by default; --results is then a file",
    )

    readme = verb("readme", _readme, "rewrite the README's tables from cards and result files")
    readme.add_argument("--file", type=Path, default=Path("README.md"))
    return parser


def _add_data(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--data", default=default, help=f"a rendered set, or {PATH_HELP}")
    command.add_argument("--count", type=int, help="only the first records of a rendered set")
    command.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out images that are broken or have no caption; changes how many there are",
    )


def _add_unit(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--unit",
        default="image",
        metavar="COLUMN",
        help="what is protected: each image (default), or all images together that have the same "
        "value in this column of the metadata: a person, a patient",
    )


def _add_sampling(command: argparse.ArgumentParser) -> None:
    command.add_argument("--guidance", type=float, help="1 is none")
    command.add_argument("--temperature", type=float, help="0 takes the likeliest codes")
    command.add_argument("--top-k", type=int, help="0 cuts nothing")
    command.add_argument("--top-p", type=float, help="1 cuts nothing")


def _settings(kind: type[T], options: argparse.Namespace, **more: Any) -> T:
    """The settings of a run: defaults, but for what the command line gave, and `more`."""
    given = vars(options) | more
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{n: v for n, v in given.items() if n in known and v is not None})


def _public_records(options: argparse.Namespace) -> Records:
    """The set that a public part is trained on. It leaves no trace in a privacy ledger."""
    from dpwg.data import RENDERED_SETS

    rendered = options.data in RENDERED_SETS
    if not (options.data.startswith(("public-", "tuning-")) if rendered else options.public):
        raise ValueError(
            f"Expected data={options.data!r} to be public: public parts are trained without noise. "
            "Pass a public set, or --public for a folder in which nothing is sensitive."
        )
    return _records(options)


def _records(options: argparse.Namespace, ranks: Ranks | None = None) -> Records:
    """The set that --data names, without broken records where --skip-broken says so."""
    from dpwg.data import open_records

    if not options.skip_broken:
        return open_records(options.data, count=options.count)
    with _bar("looking for broken images", ranks) as progress:
        return open_records(options.data, count=options.count, skip_broken=True, progress=progress)


def _run_folder(options: argparse.Namespace) -> Path:
    """The folder of a private run's state, which must not be inside the release."""
    if not (options.run_folder and options.out):
        raise ValueError("Expected --run-folder and --out; with --plan nothing is trained.")
    if options.run_folder.resolve().is_relative_to(options.out.resolve()):
        raise ValueError(
            f"Expected run-folder={options.run_folder} outside of out={options.out}: the training "
            "state is private, the release is not."
        )
    return _new_or_resumed(options.run_folder, resume=options.resume)


def _plan(
    name: str, counts: dict[str, Any], plan: PrivacyPlan, rehearsal: Rehearsal
) -> dict[str, Any]:
    """A plan and what it will take, for a person who decides whether to run it."""
    return {
        "dataset": name,
        "records": plan.records,
        **counts,
        "sampling_rate": plan.sampling_rate,
        "steps": plan.steps,
        "noise_multiplier": plan.noise_multiplier,
        "max_grad_norm": plan.max_grad_norm,
        "delta": plan.delta,
        "epsilon": asdict(plan.epsilons()),
        **asdict(rehearsal),
    }


def _new_or_resumed(folder: Path, *, resume: bool) -> Path:
    if (folder / "latest").exists() and not resume:
        raise ValueError(
            f"{folder} holds a run already; pass --resume to go on with it, or another folder."
        )
    if resume and not (folder / "latest").exists():
        raise ValueError(f"Expected a run to resume in {folder}, found none.")
    return folder


def _examples(
    records: Any,
    tokenizer: Any,
    ranks: Ranks | None = None,
    group_I: Tensor | None = None,
    *,
    lines: bool = False,
) -> Any:
    """The set's training examples, with a bar while they are encoded, by the leading rank alone."""
    from dpwg.data.cache import cache_root
    from dpwg.pipeline import default_encoder
    from dpwg.training.examples import prepare_examples

    if ranks and not ranks.leads:
        ranks.wait()
    title = f"encoding {records.name}"
    with tqdm(total=2 * len(records), desc=title, unit="", disable=lines) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            if lines:
                _report({"stage": stage, "done": done, "total": total})
            else:
                bar.update(done + (total if stage == "images" else 0) - bar.n)

        examples = prepare_examples(
            records,
            default_encoder(),
            tokenizer,
            cache_root() / "encoded",
            group_I=group_I,
            progress=progress,
        )
    if ranks and ranks.leads:
        ranks.wait()
    return examples


def _kept(answer: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """The same answer, written to a result file where one is asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_plain(answer), indent=2, allow_nan=False) + "\n")
    return answer


def _report(values: dict[str, Any]) -> None:
    """One line of JSON, at once."""
    print(json.dumps(_plain(values), allow_nan=False), flush=True)


def _train(reports: Iterable[Progress], title: str, ranks: Ranks, *, lines: bool = False) -> None:
    """Run a training to its end, with the leading rank's progress bar on standard error."""
    from dpwg.training.memory import keep_freed_memory

    keep_freed_memory()
    shown: dict[str, str] = {}
    with tqdm(desc=title, unit="step", disable=lines or not ranks.leads) as bar:
        for report in reports:
            if lines and ranks.leads:
                _report({"stage": "training", **asdict(report)})
            bar.total = report.steps
            if report.gradient_norm is None:
                shown = {"loss": f"{report.loss:.4f}"}
            else:
                shown["private loss"] = f"{report.loss:.4f}"
            if report.epsilon is not None:
                shown["epsilon"] = f"{report.epsilon:.3f}"
            bar.set_postfix(shown, refresh=False)
            bar.update(report.step - bar.n)


@contextmanager
def _bar(title: str, ranks: Ranks | None = None) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of the leading rank, moved by how many are done, and in all."""
    with tqdm(desc=title, unit="", disable=bool(ranks and not ranks.leads)) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _count(done: Iterable[int], total: int, title: str) -> None:
    """Run something that yields how much is done, with a progress bar on standard error."""
    with tqdm(desc=title, total=total, unit="") as bar:
        for number in done:
            bar.update(number - bar.n)


def _listed(value: Any) -> Any:
    """Several values as a line each, for people."""
    if isinstance(value, dict):
        value = tuple(f"{name}: {item}" for name, item in value.items())
    if not isinstance(value, tuple):
        return value
    rows = (", ".join(row) if isinstance(row, tuple) else row for row in value)
    return "".join(f"\n  {row}" for row in rows) or "none"


def _plain(value: Any) -> Any:
    """JSON values: numbers that JSON does not know become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _table(answer: Any) -> str:
    """A list of dicts as columns, one dict as lines."""
    if isinstance(answer, dict):
        return "\n".join(f"{name}: {_cell(value)}" for name, value in answer.items())
    if not answer:
        return "none"
    rows = [list(answer[0]), *([_cell(v) for v in row.values()] for row in answer)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows)


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
