"""Weights, examples, pretraining, and private runs: resumed, counted, noised."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import encoded
from PIL import Image
from torch import Tensor

from dpwg.data.records import Record
from dpwg.method.captions import TextEncoder
from dpwg.method.encoders import default_encoder
from dpwg.privacy.accounting import PrivacyPlan
from dpwg.training.encodings import encode_examples, prepare_examples
from dpwg.training.examples import Examples
from dpwg.training.optimizer import Optimization, Weights, warmup_cosine
from dpwg.training.private import Finetuning, PrivateTraining
from dpwg.training.public_model import Pretraining, pretrain
from dpwg.training.run_state import load_state, save_state

RECORDS = 12
PLAN = PrivacyPlan(
    records=RECORDS, batch_size=6, steps=4, delta=1e-3, noise_multiplier=2.0, max_grad_norm=0.1
)
EXACT = Finetuning(
    precision="float32",
    caption_dropout=0.0,
    micro_batch=4,
    save_every=1,
    warmup=2,
    lora_rank=0,
    learning_rate=1e-3,
    ema_decay=0.99,
)


@pytest.fixture(scope="module")
def examples(make_examples) -> Examples:
    return make_examples()


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def flat(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def random_gradients(weights: Weights, seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=random) for n, p in weights.parameters.items()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_go_on_from_their_state_as_if_never_stopped(make_model, precision) -> None:
    settings = Optimization(precision=precision, weight_decay=0.1)
    whole, resumed = Weights(make_model(), settings), Weights(make_model(seed=1), settings)
    for step in range(6):
        if step == 3:
            resumed.load({name: tensor.clone() for name, tensor in whole.state().items()})
        for weights in (whole, resumed) if step > 2 else (whole,):
            weights.step(random_gradients(weights, step), factor=0.5)
    assert resumed.steps == whole.steps == 6
    assert torch.equal(flat(resumed.worker), flat(whole.worker))
    for name, tensor in whole.state().items():
        assert torch.equal(resumed.state()[name], tensor), name
    assert torch.equal(flat(resumed.finish()), flat(whole.finish()))
    other = {n: t for n, t in whole.state().items() if n != "parameter/norm.bias"}
    with pytest.raises(ValueError, match="resume with the settings"):
        resumed.load(other)


def test_the_worker_follows_and_the_model_ends_with_the_average(make_model) -> None:
    weights = Weights(make_model(), Optimization(ema_decay=0.5, precision="bfloat16"))
    seen = [flat(weights.model)]
    for step in range(4):
        weights.step(random_gradients(weights, step), factor=1.0)
        seen.append(flat(weights.model))
        assert torch.equal(flat(weights.worker), seen[-1].bfloat16())
    average = seen[0]
    for step, parameters in enumerate(seen[1:], start=1):
        average = average.lerp(parameters, 1 - min(0.5, step / (step + 9)))
    torch.testing.assert_close(flat(weights.finish()), average)


@pytest.mark.parametrize("change", [{"precision": "float16"}, {"ema_decay": 1.0}, {"momentum": 1}])
def test_settings_out_of_range_are_refused(change: dict) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(change))):
        Optimization(**change)


def test_the_learning_rate_rises_then_falls_to_its_floor() -> None:
    factors = [warmup_cosine(step, 20, 4) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[20] == pytest.approx(0.05)


def test_a_state_replaces_the_one_before_and_survives_a_half_written_one(tmp_path: Path) -> None:
    assert load_state(tmp_path, {}) is None
    for step in (1, 2):
        save_state(tmp_path, {"a": torch.full((2,), float(step))}, {"step": step})
    (tmp_path / ".state.partial-1").touch()
    tensors, values = load_state(tmp_path, {}) or ({}, {})
    assert (tensors["a"].tolist(), values) == ([2.0, 2.0], {"step": 2})


def test_each_visit_draws_one_of_the_captions_of_its_record(make_examples, make_inputs) -> None:
    examples, texts = make_examples((1, 3, 2)), make_inputs(6, seed=1)
    indices_B = torch.arange(3).repeat(400)
    draw_B = torch.rand(len(indices_B), generator=torch.Generator().manual_seed(0))
    batch = examples.batch(indices_B, draw_B=draw_B)
    rows = torch.cdist(batch.states_BLD.flatten(1), texts.states_BLD.flatten(1)).argmin(1)
    assert torch.equal(batch.states_BLD, texts.states_BLD[rows])
    assert torch.equal(batch.mask_BL, texts.mask_BL[rows])
    for record, own in enumerate(([0], [1, 2, 3], [4, 5])):
        drawn = torch.bincount(rows[indices_B == record], minlength=6)
        assert drawn.nonzero().flatten().tolist() == own
        assert drawn.max() - drawn[own].min() < 100


def test_a_batch_holds_the_codes_of_its_records_and_empties_dropped_captions(
    examples, make_inputs
) -> None:
    indices_B, inputs = torch.tensor([7, 0, 7]), make_inputs(RECORDS)
    dropped_B = torch.tensor([False, True, False])
    before = examples.batch(indices_B)
    batch = examples.batch(indices_B, dropped_B=dropped_B)
    assert len(batch) == 3
    for own, every in zip(batch.codes, inputs.codes, strict=True):
        assert own.dtype == torch.int64
        assert torch.equal(own, every[indices_B])
    assert torch.equal((batch.states_BLD == 9).flatten(1).all(1), dropped_B)
    assert (batch.mask_BL[1] == (torch.arange(5) < 2)).all()
    assert torch.equal(examples.batch(indices_B).states_BLD, before.states_BLD)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_a_private_run_drops_captions_at_their_rate(
    make_model, examples, monkeypatch, no_epsilon, rate
) -> None:
    drops: list[Tensor] = []
    batch = Examples.batch

    def watched(self, indices_B, **draws):
        if "dropped_B" in draws:
            drops.append(draws["dropped_B"][: len(indices_B.unique())])  # without the padding
        return batch(self, indices_B, **draws)

    monkeypatch.setattr(Examples, "batch", watched)
    plan = dataclasses.replace(PLAN, steps=60 if 0 < rate < 1 else 5)
    settings = dataclasses.replace(EXACT, caption_dropout=rate, micro_batch=RECORDS, save_every=99)
    list(private(make_model, examples, plan, settings)[1].run())
    assert torch.cat(drops).float().mean() == pytest.approx(rate, abs=0.1 if 0 < rate < 1 else 0)


def test_captions_that_are_not_those_of_the_records_are_refused(make_examples) -> None:
    with pytest.raises(ValueError, match="caption"):
        make_examples((1, 0, 2))
    with pytest.raises(ValueError, match="captions of 5 records, found 4"):
        make_examples((1,) * 4, images=(0, 1, 2, 3, 3))


class Listed(list[Record]):
    name, digest = "listed", "0" * 64


@pytest.fixture
def records(images) -> Listed:
    pixels = (images[:5] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    captions = [[f"image {i} said {times}" for times in range(1 + i % 2)] for i in range(5)]
    return Listed(
        Record(image_bytes=encoded(Image.fromarray(own)), captions=tuple(texts))
        for own, texts in zip(pixels, captions, strict=True)
    )


def test_prepared_examples_hold_the_codes_and_captions_of_every_record(
    tmp_path: Path, make_tokenizer, images, records
) -> None:
    tokenizer, encoder = make_tokenizer(), default_encoder()
    tokenizer.initialise_from(images, rounds=2)

    def made(encoder: TextEncoder = encoder) -> list[tuple[str, int, int]]:
        reports = encode_examples(records, encoder, tokenizer, tmp_path)
        return [(report.stage, report.step, report.steps) for report in reports]

    assert made() == [("captions", 5, 5), ("images", 5, 5)]
    examples = prepare_examples(records, encoder, tokenizer, tmp_path)
    everyone = torch.arange(5)
    batch = examples.batch(everyone)
    for own, expected in zip(batch.codes, tokenizer.encode(images[:5]), strict=True):
        assert own.shape == expected.shape
        assert (own == expected).float().mean() > 0.9  # encoded in bfloat16, of rounded pixels
    alone = encoder.encode([record.captions[0] for record in records])
    assert torch.equal(batch.mask_BL, alone.mask_BL)
    assert (batch.states_BLD.float() - alone.states_BLD).norm() < 0.05 * alone.states_BLD.norm()
    empty = examples.batch(everyone, dropped_B=torch.ones(5, dtype=torch.bool))
    assert (empty.mask_BL == encoder.encode([""]).mask_BL).all()
    assert made() == []
    assert made(TextEncoder.minilm(max_tokens=8)) == [("captions", 5, 5)]
    tokenizer.initialise_from(images, seed=1, rounds=2)
    assert made() == [("images", 5, 5)]


PRETRAINING = Pretraining(
    steps=40, batch=12, warmup=4, learning_rate=5e-3, ema_decay=0.7, report_every=10, save_every=15
)


def test_pretraining_lowers_the_loss_and_resumes_from_its_last_state(
    make_model, examples, tmp_path: Path
) -> None:
    model = make_model()
    begun = pretrain(model, examples, PRETRAINING, tmp_path)
    first = [next(begun), next(begun)]
    begun.close()
    finished, again = make_model(), make_model()
    reports = list(pretrain(finished, examples, PRETRAINING, tmp_path))
    assert [report.step for report in (*first, *reports)] == [10, 20, 20, 30, 40]
    assert [report.examples for report in (*first, reports[-1])] == [120, 240, 25 * 12]
    assert reports[-1].loss < 0.8 * first[0].loss
    assert list(pretrain(again, examples, PRETRAINING, tmp_path)) == []
    assert torch.equal(flat(finished), flat(again))
    batch = examples.batch(torch.arange(12))
    with torch.no_grad():
        loss_B = again.negative_log_likelihood(batch.states_BLD, batch.mask_BL, batch.codes)
    assert loss_B.mean() < first[1].loss


def test_pretraining_visits_every_example_before_any_comes_again(
    make_model, examples, tmp_path: Path, monkeypatch
) -> None:
    visited: list[int] = []
    batch = examples.batch

    def visit(indices_B, **drawn):
        visited.extend(indices_B.tolist())
        return batch(indices_B, **drawn)

    monkeypatch.setattr(examples, "batch", visit)
    settings = dataclasses.replace(PRETRAINING, steps=8, batch=9, report_every=2, save_every=4)
    for report in pretrain(make_model(), examples, settings, tmp_path):
        if report.step == 4:
            break
    list(pretrain(make_model(), examples, settings, tmp_path))  # goes on after step 4
    epochs = [visited[start : start + 12] for start in range(0, 72, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 6


def private(make_model, examples, plan=PLAN, settings=EXACT, folder=None, seed=0):
    model = make_model()
    training = PrivateTraining(model, examples, plan, settings, folder, generator=generator(seed))
    return model, training


def test_the_ledger_counts_every_step_and_its_epsilon_is_reported(make_model, examples) -> None:
    _, training = private(make_model, examples)
    reports = []
    for report in training.run():
        reports.append(report)
        assert training.ledger.steps == report.step == len(reports)
    assert [report.step for report in reports] == [1, 2, 3, 4]
    epsilons = [report.epsilon for report in reports]
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] == training.ledger.pld_epsilon(PLAN.delta) == PLAN.epsilons().pld
    assert training.ledger.to_json() == [
        {"sampling_rate": 0.5, "noise_multiplier": 2.0, "steps": 4}
    ]
    assert list(training.run()) == []


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
@pytest.mark.parametrize("save_every", [1, 3])
def test_a_run_interrupted_at_any_step_ends_with_the_uninterrupted_ledger(
    make_model, examples, tmp_path: Path, stop: int, save_every: int
) -> None:
    settings = dataclasses.replace(EXACT, save_every=save_every)
    saved = stop if save_every == 1 or stop == 4 else stop // 3 * 3
    _, interrupted = private(make_model, examples, settings=settings, folder=tmp_path)
    for report in interrupted.run():
        if report.step == stop:
            break
    model, resumed = private(make_model, examples, settings=settings, folder=tmp_path, seed=1)
    assert resumed.ledger.steps == saved
    assert len(list(resumed.run())) == PLAN.steps - saved
    assert resumed.ledger.pld_epsilon(PLAN.delta) == PLAN.epsilons().pld
    assert not torch.equal(flat(model), flat(make_model()))


def test_a_resumed_run_has_the_weights_of_the_uninterrupted_one(
    make_model, examples, tmp_path: Path
) -> None:
    model, whole = private(make_model, examples)
    list(whole.run())
    shared = generator()
    first = PrivateTraining(make_model(), examples, PLAN, EXACT, tmp_path, generator=shared)
    next(iter(first.run()))
    resumed = make_model()
    list(PrivateTraining(resumed, examples, PLAN, EXACT, tmp_path, generator=shared).run())
    torch.testing.assert_close(flat(resumed), flat(model), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_finished_run_gives_its_weights_again(make_model, examples, tmp_path, rank) -> None:
    settings = dataclasses.replace(EXACT, lora_rank=rank)
    model, training = private(make_model, examples, settings=settings, folder=tmp_path)
    list(training.run())
    assert {path.name for path in tmp_path.iterdir()} == {".gitignore", "begun", "state"}
    again, resumed = private(make_model, examples, settings=settings, folder=tmp_path, seed=3)
    assert list(resumed.run()) == []
    assert torch.equal(flat(again), flat(model))
    assert not torch.equal(flat(model), flat(make_model()))


@pytest.mark.parametrize(
    ("seed", "plan", "settings", "message"),
    [
        (0, {"noise_multiplier": 1.0}, {}, "the plan of the run"),
        (0, {"steps": 9}, {}, "the plan of the run"),
        (0, {"delta": 1e-4}, {}, "the plan of the run"),
        (0, {"batch_size": 3}, {}, "the plan of the run"),
        (0, {}, {"learning_rate": 1.0}, "the settings of the run"),
        (1, {}, {}, "the base of the run"),
        (0, {"records": 11}, {}, r"plan\.records=11 to be the 12 examples"),
    ],
)
def test_another_run_in_the_folder_is_refused(
    make_model, examples, tmp_path, seed, plan, settings, message
) -> None:
    next(iter(private(make_model, examples, folder=tmp_path)[1].run()))
    changed = dataclasses.replace(PLAN, **plan), dataclasses.replace(EXACT, **settings)
    with pytest.raises(ValueError, match=message):
        PrivateTraining(make_model(seed), examples, *changed, tmp_path)


@pytest.mark.parametrize(("size", "rank"), [(1, 2), (3, 0), (5, 2), (64, 0)])
def test_the_micro_batch_has_no_effect_on_the_parameters(
    make_model, make_examples, size, rank
) -> None:
    ends = []
    for micro_batch in (4, size):
        settings = dataclasses.replace(
            EXACT, lora_rank=rank, caption_dropout=0.3, micro_batch=micro_batch
        )
        torch.manual_seed(0)
        model, training = private(make_model, make_examples((1, 2, 3) * 4), settings=settings)
        list(training.run())
        ends.append(flat(model))
    torch.testing.assert_close(*ends, atol=1e-5, rtol=0)


def test_an_empty_batch_still_takes_a_noise_step(make_model, examples) -> None:
    plan = dataclasses.replace(PLAN, batch_size=1, steps=6)
    model, training = private(make_model, examples, plan)
    taken, before, drawn = [], flat(model), 0
    for report in training.run():
        after = flat(model)
        taken.append(report.examples - drawn)
        if not taken[-1]:
            noise = torch.cat([total.flatten() for total in training._clipped.sums.values()])
            assert noise.std().item() == pytest.approx(2.0 * 0.1, rel=0.05)
        assert (after != before).float().mean() > 0.99
        before, drawn = after, report.examples
    assert 0 in taken
    assert any(taken)
    assert training.ledger.steps == 6


def gradients_of(model, examples: Examples, indices: list[int]) -> dict[str, Tensor]:
    """The gradient of the records' summed losses, by plain autograd."""
    batch = examples.batch(torch.tensor(indices))
    model.zero_grad()
    model.negative_log_likelihood(batch.states_BLD, batch.mask_BL, batch.codes).sum().backward()
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for n, p in model.named_parameters()
    }


def test_a_step_is_the_clipped_noised_sum_over_the_expected_batch_size(make_model, examples):
    plan = dataclasses.replace(PLAN, batch_size=3, steps=1)
    model, training = private(make_model, examples, plan)
    list(training.run())
    random = generator()
    chosen = np.flatnonzero(random.random(RECORDS) < 0.25)
    assert len(chosen) not in (0, 3)
    random.random((2, RECORDS))
    expected = make_model()
    sums = {name: torch.zeros_like(p) for name, p in expected.named_parameters()}
    for index in chosen:
        gradients = gradients_of(expected, examples, [index])
        norm = torch.stack([g.norm() for g in gradients.values()]).norm()
        assert norm > plan.max_grad_norm
        for name, gradient in gradients.items():
            sums[name] += gradient * plan.max_grad_norm / norm
    for name in training._clipped.sums:
        noise = torch.from_numpy(random.standard_normal(tuple(sums[name].shape)))
        sums[name] = (sums[name] + 0.2 * noise.float()) / 3
    weights = Weights(expected, EXACT)
    weights.step(sums, factor=warmup_cosine(0, 1, 2))
    torch.testing.assert_close(flat(weights.finish()), flat(model), atol=1e-6, rtol=0)


def test_a_plan_without_noise_does_not_clip_and_claims_nothing(make_model, examples) -> None:
    plan = dataclasses.replace(
        PLAN, noise_multiplier=0.0, max_grad_norm=1e-6, batch_size=RECORDS, steps=1
    )
    model, training = private(make_model, examples, plan)
    (report,) = training.run()
    assert report.epsilon == np.inf
    expected = make_model()
    sums = gradients_of(expected, examples, list(range(RECORDS)))
    for name, total in training._clipped.sums.items():
        torch.testing.assert_close(total, sums[name], atol=1e-5, rtol=1e-4)
    weights = Weights(expected, EXACT)
    gradients = {name: total / RECORDS for name, total in sums.items()}
    weights.step(gradients, factor=warmup_cosine(0, 1, 2))
    assert (flat(weights.finish()) - flat(model)).abs().mean() < 1e-5


def test_the_run_draws_from_the_system_unless_told_otherwise(make_model, examples) -> None:
    plan, ends = dataclasses.replace(PLAN, steps=1), []
    for _ in range(2):
        np.random.seed(0)
        torch.manual_seed(0)
        model = make_model()
        list(PrivateTraining(model, examples, plan, EXACT).run())
        ends.append(flat(model))
    assert not torch.equal(*ends)
