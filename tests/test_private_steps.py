"""What the steps of a real private run draw, clip and record."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from gradients import ONE_RECORD, Sums, assert_same_sums, clip, minus, norm_of
from scipy import stats
from torch import Tensor

from dpwg.method.transformer import LORA_LAYERS
from dpwg.privacy.accounting import PrivacyPlan
from dpwg.privacy.lora import add_lora
from dpwg.training import private
from dpwg.training.examples import Batch, Examples
from dpwg.training.optimizer import Weights
from dpwg.training.private import Finetuning, PrivateTraining
from dpwg.training.run_state import load_state, save_state

RECORDS = 12
PLAN = PrivacyPlan(
    records=RECORDS, batch_size=6, steps=4, delta=1e-3, noise_multiplier=50.0, max_grad_norm=0.1
)
EVERYONE = dataclasses.replace(PLAN, batch_size=RECORDS, steps=2)
DEVIATION = 50.0 * 0.1
EXACT = Finetuning(
    precision="float32",
    caption_dropout=0.0,
    micro_batch=5,
    save_every=1,
    warmup=2,
    lora_rank=0,
    learning_rate=1e-3,
)
LORA = dataclasses.replace(EXACT, lora_rank=2)
both = pytest.mark.parametrize("settings", [EXACT, LORA], ids=["full", "lora"])
precisions = pytest.mark.parametrize("precision", ["float32", "bfloat16"])


@dataclass
class Watched:
    """What a run asked of the mechanism and of its examples, step by step."""

    rates: list[float] = field(default_factory=list)
    chosen: list[list[int]] = field(default_factory=list)
    visits: list[list[tuple[int, float]]] = field(default_factory=list)
    clean: list[Sums] = field(default_factory=list)
    noise: list[Tensor] = field(default_factory=list)
    deviations: list[float] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)


@pytest.fixture
def watched(monkeypatch) -> Watched:
    """The real mechanism and examples, watched."""
    seen = Watched()
    sample, add_noise, batch = private.poisson_sample, private.add_gaussian_noise, Examples.batch
    take_step = Weights.step

    def poisson_sample(records: int, rate: float, generator: np.random.Generator) -> Tensor:
        chosen_N = sample(records, rate, generator)
        seen.rates.append(rate)
        seen.chosen.append(chosen_N.tolist())
        seen.visits.append([])
        return chosen_N

    def add_gaussian_noise(
        sums: Sums, *, standard_deviation: float, generator: np.random.Generator
    ) -> None:
        before = {name: total.clone() for name, total in sums.items()}
        add_noise(sums, standard_deviation=standard_deviation, generator=generator)
        seen.clean.append(before)
        seen.noise.append(
            torch.cat([(total - before[name]).flatten() for name, total in sums.items()])
        )
        seen.deviations.append(standard_deviation)

    def visit(self: Examples, indices_B: Tensor, **draws: Tensor) -> Batch:
        if "dropped_B" in draws:  # not so before the first step
            seen.visits[-1] += zip(indices_B.tolist(), draws["draw_B"].tolist(), strict=True)
        return batch(self, indices_B, **draws)

    def step(self: Weights, gradients: Sums, *, factor: float) -> None:
        seen.gradients.append(torch.cat([g.flatten() for g in gradients.values()]))
        take_step(self, gradients, factor=factor)

    monkeypatch.setattr(Weights, "step", step)
    monkeypatch.setattr(private, "poisson_sample", poisson_sample)
    monkeypatch.setattr(private, "add_gaussian_noise", add_gaussian_noise)
    monkeypatch.setattr(Examples, "batch", visit)
    return seen


@pytest.fixture(scope="module")
def examples(make_examples) -> Examples:
    return make_examples()


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def training(
    make_model,
    examples: Examples,
    plan: PrivacyPlan = PLAN,
    settings: Finetuning = EXACT,
    folder: Path | None = None,
    *,
    seed: int | None = 0,
) -> PrivateTraining:
    torch.manual_seed(0)
    own = None if seed is None else generator(seed)
    return PrivateTraining(make_model(), examples, plan, settings, folder, generator=own)


# The noise


@both
@pytest.mark.parametrize("micro_batch", [1, 64])
def test_a_step_draws_noise_once_whatever_its_micro_batches(
    make_model, examples, watched, settings, micro_batch
) -> None:
    plan = dataclasses.replace(PLAN, batch_size=1, steps=6)
    settings = dataclasses.replace(settings, micro_batch=micro_batch)
    run = training(make_model, examples, plan, settings)
    list(run.run())
    assert [] in watched.chosen
    assert max(len(chosen) for chosen in watched.chosen) > 1
    assert watched.deviations == [DEVIATION] * plan.steps
    assert run.ledger.steps == plan.steps
    expected, shapes = generator(), [tuple(total.shape) for total in watched.clean[0].values()]
    for noise in watched.noise:
        expected.random(3 * RECORDS)  # who joins, and the captions
        drawn = np.concatenate([expected.standard_normal(shape).ravel() for shape in shapes])
        expected_N = torch.from_numpy(DEVIATION * drawn).float()
        torch.testing.assert_close(noise, expected_N, atol=1e-5, rtol=1e-5)
    # Divided by the batch that was expected, whatever was drawn.
    for clean, noise, gradient_N in zip(
        watched.clean, watched.noise, watched.gradients, strict=True
    ):
        total_N = torch.cat([total.flatten() for total in clean.values()]) + noise
        torch.testing.assert_close(gradient_N * plan.batch_size, total_N, atol=1e-5, rtol=1e-4)


def test_a_resumed_run_draws_noise_that_no_run_drew_before(
    make_model, examples, watched, tmp_path: Path
) -> None:
    first = training(make_model, examples, folder=tmp_path / "first", seed=None)
    next(steps := first.run())
    for copied in ("second", "third"):
        shutil.copytree(tmp_path / "first", tmp_path / copied)
        next(training(make_model, examples, folder=tmp_path / copied, seed=None).run())
    next(steps)
    assert first.ledger.steps == 2
    assert len(watched.noise) == 4
    correlation = torch.corrcoef(torch.stack(watched.noise)) - torch.eye(4)
    assert correlation.abs().max() < 4.5 / len(watched.noise[0]) ** 0.5


# The sample


@pytest.mark.parametrize("batch_size", [2, 9, 12])
def test_who_is_drawn_is_visited_once_with_any_caption_at_the_rate_of_the_ledger(
    make_model, make_examples, watched, no_epsilon, batch_size: int
) -> None:
    counts = (1, 2, 3) * 4
    plan = dataclasses.replace(PLAN, batch_size=batch_size, steps=60)
    settings = dataclasses.replace(EXACT, micro_batch=RECORDS)
    run = training(make_model, make_examples(counts), plan, settings)
    for report in run.run():
        (entry,) = run.ledger.entries
        assert entry.steps == report.step
        assert watched.rates == [entry.sampling_rate] * report.step
        assert watched.deviations == [entry.noise_multiplier * 0.1] * report.step
    assert entry.sampling_rate == batch_size / RECORDS
    visits = [sorted(set(step)) for step in watched.visits]  # the padding is of the same visit
    assert [[record for record, _ in step] for step in visits] == watched.chosen
    assert report.examples == sum(map(len, visits))
    expected = 60 * batch_size
    assert abs(report.examples - expected) <= 4.5 * (expected * (1 - entry.sampling_rate)) ** 0.5
    for captions in (2, 3):
        drawn = [
            int(draw * captions)
            for record, draw in itertools.chain(*visits)
            if counts[record] == captions
        ]
        assert stats.chisquare(np.bincount(drawn, minlength=captions)).pvalue > 1e-3
    with pytest.raises(AttributeError):
        run.plan = dataclasses.replace(plan, noise_multiplier=100.0)


@pytest.mark.parametrize(
    "change", [{"sampling_rate": 0.1}, {"noise_multiplier": 60.0}, {"steps": 3}]
)
def test_a_ledger_of_other_steps_than_the_plan_took_is_refused(
    make_model, examples, tmp_path: Path, change
) -> None:
    next(training(make_model, examples, folder=tmp_path).run())
    tensors, values = load_state(tmp_path, {})
    values["ledger"][0] |= change
    save_state(tmp_path, tensors, values)
    with pytest.raises(ValueError, match="state is damaged"):
        training(make_model, examples, folder=tmp_path)


# Neighbours


def changed(examples: Examples, *, without: int | None = None, bad: int | None = None) -> Examples:
    """The examples without one of them, or with one whose caption states are not numbers."""
    batch = examples.batch(torch.tensor([i for i in range(len(examples)) if i != without]))
    states_BLD = batch.states_BLD.clone()
    if bad is not None:
        states_BLD[bad] = torch.nan
    captions = {
        "states": states_BLD,
        "mask": batch.mask_BL,
        "count": torch.ones(len(batch), dtype=torch.int64),
        "empty_states": torch.zeros(5, 8),
        "empty_mask": torch.arange(5) < 2,
    }
    return Examples(captions, {f"codes_{s}": c for s, c in enumerate(batch.codes)})


@both
@precisions
def test_a_record_removed_moves_the_sum_before_noise_by_at_most_the_clip_norm(
    make_model, examples, watched, settings, precision
) -> None:
    settings = dataclasses.replace(settings, precision=precision)
    fewer = dataclasses.replace(EVERYONE, records=RECORDS - 1, batch_size=RECORDS - 1)
    less = changed(examples, without=7)
    for own, plan in ((examples, EVERYONE), (less, fewer)):
        next(training(make_model, own, plan, settings).run())
    moved = norm_of(minus(*watched.clean))
    assert 0.98 * plan.max_grad_norm < moved <= plan.max_grad_norm * ONE_RECORD


@both
@precisions
def test_a_record_without_finite_gradient_is_counted_and_the_run_goes_on(
    make_model, examples, watched, settings, precision
) -> None:
    settings = dataclasses.replace(settings, precision=precision)
    run = training(make_model, changed(examples, bad=3), EVERYONE, settings)
    reports = list(run.run())
    assert [report.refused for report in reports] == [1] * EVERYONE.steps
    assert [report.examples for report in reports] == [RECORDS, 2 * RECORDS]
    assert run.ledger.steps == EVERYONE.steps
    assert all(state.isfinite().all() for state in run._weights.state().values())
    torch.manual_seed(0)
    worker = make_model()
    if settings.lora_rank:
        add_lora(worker, settings.lora_rank, LORA_LAYERS)
    worker = worker.to(getattr(torch, precision))
    others = changed(examples, without=3).batch(torch.arange(RECORDS - 1))
    _, expected = clip(
        worker,
        lambda m, _: m.negative_log_likelihood(others.states_BLD, others.mask_BL, others.codes),
        len(others),
        EVERYONE.max_grad_norm,
    )
    assert_same_sums(watched.clean[0], expected, 1e-5 if precision == "float32" else 2e-2)
