"""Several processes take the steps of one, and noise is added once among them."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, distributed, multiprocessing

from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.method.transformer import WaveletGPT
from dpwg.privacy.accounting import PrivacyPlan
from dpwg.training import private
from dpwg.training.examples import Examples
from dpwg.training.private import Finetuning, PrivateTraining
from dpwg.training.processes import Ranks
from dpwg.training.public_model import Pretraining, pretrain
from dpwg.training.tokenizer import TokenizerTraining, train_tokenizer

WORLD = 2
PLAN = PrivacyPlan(
    records=24, batch_size=9, steps=4, delta=1e-3, noise_multiplier=2.0, max_grad_norm=0.1
)
NOISY_PLAN = dataclasses.replace(PLAN, batch_size=1, noise_multiplier=50.0, steps=3)
SETTINGS = Finetuning(precision="float32", micro_batch=4, warmup=2, learning_rate=1e-3, lora_rank=2)


def flat(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def sampled_alike(
    ranks: Ranks, model: WaveletGPT, examples: Examples, plan: PrivacyPlan
) -> dict[str, Any]:
    """A private run with clipping but the noise off, and the same sampling on every rank."""
    private.add_gaussian_noise = lambda *_, **__: None
    return finetuned(ranks, model, examples, plan, 3)


def finetuned(
    ranks: Ranks, model: WaveletGPT, examples: Examples, plan: PrivacyPlan, seed: int | None = None
) -> dict[str, Any]:
    """A private run; without a seed every rank draws from the system for itself."""
    torch.manual_seed(5 + ranks.rank)
    generator = None if seed is None else np.random.Generator(np.random.Philox(seed))
    training = PrivateTraining(model, examples, plan, SETTINGS, ranks=ranks, generator=generator)
    reports, noised = [], []
    for report in training.run():
        reports.append(report)
        noised.append(torch.cat([total.flatten() for total in training._clipped.sums.values()]))
    return {
        "weights": flat(model),
        "examples": [report.examples for report in reports],
        "losses": [report.loss for report in reports],
        "steps": training.ledger.steps,
        "noised": torch.stack(noised),
    }


def public_parts(
    ranks: Ranks,
    model: WaveletGPT,
    examples: Examples,
    folder: Path,
    tokenizer: SpectralTokenizer,
    images: Tensor,
) -> dict[str, Any]:
    """Pretraining and tokenizer training; and what is agreed on where only rank 0 has bfloat16."""
    settings = Pretraining(steps=3, batch=6, warmup=1, precision="float32", report_every=1)
    reports = list(pretrain(model, examples, settings, folder, ranks))
    other = TokenizerTraining(steps=4, batch=6, warmup=1, report_every=1, revive_every=1)
    steps = list(train_tokenizer(tokenizer, images, other, ranks))
    with mock.patch("torch.cpu.get_capabilities", return_value={"amx_bf16": ranks.leads}):
        agreed = [ranks.agree_on_precision(name) for name in ("auto", "bfloat16", "float32")]
    return {
        "agreed": agreed,
        "weights": flat(model),
        "losses": [report.loss for report in reports],
        "tokenizer": flat(tokenizer),
        "tokenizer losses": [step.loss for step in steps],
    }


def work(rank: int, folder: Path, tasks: dict[str, tuple[Any, ...]]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=WORLD
    )
    answers = {}
    for name, (run, *given) in tasks.items():
        with mock.patch.object(private, "add_gaussian_noise", private.add_gaussian_noise):
            own = copy.deepcopy(given)  # spawn gives all processes the same memory
            answers[name] = run(Ranks(rank, WORLD), *own)
    torch.save(answers, folder / f"rank-{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(
    tmp_path_factory, make_model, make_tokenizer, examples, pixels
) -> dict[str, list[dict[str, Any]]]:
    """What two processes answer: started once, since that takes longer than all they do."""
    folder: Path = tmp_path_factory.mktemp("two")
    tokenizer = make_tokenizer().requires_grad_(True)
    tasks = {
        "sampled alike": (sampled_alike, make_model(), examples, PLAN),
        "noised": (finetuned, make_model(), examples, NOISY_PLAN),
        "public": (public_parts, make_model(), examples, folder / "state", tokenizer, pixels),
    }
    multiprocessing.spawn(work, (folder, tasks), nprocs=WORLD)
    ranks = [torch.load(folder / f"rank-{rank}.pt") for rank in range(WORLD)]
    return {name: [answers[name] for answers in ranks] for name in tasks}


@pytest.fixture(scope="module")
def pixels(images) -> Tensor:
    return (images * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def examples(make_examples) -> Examples:
    return make_examples((2,) * PLAN.records)


def test_two_ranks_fine_tune_as_one_process(monkeypatch, make_model, examples, two) -> None:
    monkeypatch.setattr(private, "add_gaussian_noise", None)
    one = sampled_alike(Ranks(), make_model(), examples, PLAN)
    ranks = two["sampled alike"]
    for rank in ranks:
        torch.testing.assert_close(rank["weights"], one["weights"], atol=1e-5, rtol=0)
        assert rank["examples"] == one["examples"]
        assert rank["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert rank["steps"] == PLAN.steps
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])


def test_noise_is_added_once_whatever_the_ranks(two) -> None:
    first, second = two["noised"]
    assert torch.equal(first["noised"], second["noised"])
    assert torch.equal(first["weights"], second["weights"])
    noise_TN = first["noised"] / (NOISY_PLAN.noise_multiplier * NOISY_PLAN.max_grad_norm)
    steps, size = noise_TN.shape
    for noise_N in noise_TN:
        assert stats.kstest(noise_N.numpy(), "norm").pvalue > 1e-4
        assert noise_N.std().item() == pytest.approx(1.0, rel=5 / (2 * size) ** 0.5)
    correlation_TT = torch.corrcoef(noise_TN) - torch.eye(steps)
    assert correlation_TT.abs().max() < 5 / size**0.5


def test_two_ranks_train_the_public_parts_as_one_process(
    tmp_path, make_model, make_tokenizer, examples, pixels, two
) -> None:
    tokenizer = make_tokenizer().requires_grad_(True)
    one = public_parts(Ranks(), make_model(), examples, tmp_path, tokenizer, pixels)
    assert one["agreed"] == ["bfloat16", "bfloat16", "float32"]
    ranks = two["public"]
    for rank in ranks:
        torch.testing.assert_close(rank["weights"], one["weights"], atol=1e-5, rtol=0)
        assert rank["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert rank["agreed"] == ["float32", "bfloat16", "float32"]
    own, other = (rank["tokenizer losses"] for rank in ranks)
    assert own == other
    assert own[0] == pytest.approx(one["tokenizer losses"][0], rel=1e-2)
    assert torch.equal(ranks[0]["tokenizer"], ranks[1]["tokenizer"])
    assert (ranks[0]["tokenizer"] - one["tokenizer"]).abs().mean() < 1e-2


def test_a_process_alone_has_all_and_several_share_it() -> None:
    ranks, x = Ranks(), torch.arange(5.0)
    ranks.sum_([x])
    ranks.broadcast_([x])
    ranks.wait()
    assert ranks.leads
    assert torch.equal(ranks.share(x), torch.arange(5.0))
    shares = [Ranks(rank, 3).share(torch.arange(10)) for rank in range(3)]
    assert sorted(torch.cat(shares).tolist()) == list(range(10))
