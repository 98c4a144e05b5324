"""The one-run audit: its statistics, the real engine, and broken engines that are to be caught."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dpwg.measure.engine_audit import (
    EngineAudit,
    audit_private_training,
    canary_readings,
    optimizer_gradients,
)
from dpwg.privacy.accounting import Ledger, PrivacyPlan
from dpwg.privacy.clipping import ClippedBatch, ClippedSums
from dpwg.privacy.mechanism import add_gaussian_noise, poisson_sample
from dpwg.privacy.one_run_audit import (
    audit_guesses,
    correct_guesses,
    epsilon_lower_bound,
    guesses_p_value,
)
from dpwg.training import private
from dpwg.training.examples import Examples
from dpwg.training.private import Finetuning, PrivateTraining

CANARIES, GUESSES = 2000, 100  # guesses each way
PLAN = PrivacyPlan(
    records=CANARIES,
    batch_size=CANARIES // 4,
    steps=20,
    delta=1e-4,
    noise_multiplier=2.23,  # epsilon 2
    max_grad_norm=0.1,
)
FULL_BATCH = dataclasses.replace(PLAN, batch_size=CANARIES)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


# The statistics


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "printed"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
)
def test_the_bounds_that_the_paper_prints(canaries, guesses, correct, delta, printed) -> None:
    bound = epsilon_lower_bound(canaries=canaries, guesses=guesses, correct=correct, delta=delta)
    assert bound == pytest.approx(printed, abs=1e-3)  # Appendix D, and section 7


def tail(least: int, guesses: int, rate: float) -> float:
    return math.fsum(
        math.comb(guesses, k) * rate**k * (1 - rate) ** (guesses - k)
        for k in range(max(least, 0), guesses + 1)
    )


@given(
    correct=st.integers(0, 30),
    delta=st.sampled_from([0.0, 1e-4, 0.02]),
    epsilon=st.floats(0, 4),
)
def test_the_p_value_is_that_of_the_theorem(epsilon: float, delta: float, correct: int) -> None:
    rate = math.exp(epsilon) / (math.exp(epsilon) + 1)
    own = tail(correct, 30, rate)
    shares = [(tail(correct - i, 30, rate) - own) / i for i in range(1, 51)]
    found = guesses_p_value(epsilon=epsilon, canaries=50, guesses=30, correct=correct, delta=delta)
    assert found == pytest.approx(min(1, own + 2 * 50 * delta * max(shares)), rel=1e-9)


@given(
    guesses=st.integers(0, 400),
    share=st.floats(0, 1),
    delta=st.sampled_from([0.0, 1e-5, 1e-3]),
    confidence=st.sampled_from([0.8, 0.95, 0.999]),
)
def test_the_bound_is_the_least_epsilon_that_is_not_refuted(
    guesses: int, share: float, delta: float, confidence: float
) -> None:
    counts = {"canaries": 400, "guesses": guesses, "correct": int(share * guesses), "delta": delta}
    bound = epsilon_lower_bound(**counts, confidence=confidence)
    assert guesses_p_value(epsilon=bound + 1e-5, **counts) > 1 - confidence
    if bound:
        assert guesses_p_value(epsilon=bound, **counts) <= 1 - confidence
    assert share > 0.5 or bound == 0  # chance proves nothing


SCORES = np.array([0.3, -2.0, 5.0, 0.2, -1.0, 1.0])
INCLUDED = np.array([True, True, True, False, False, False])


@pytest.mark.parametrize(
    ("k_plus", "k_minus", "correct"),
    [(0, 0, 0), (1, 0, 1), (2, 0, 1), (3, 0, 2), (0, 1, 0), (0, 2, 1), (1, 2, 2), (3, 3, 4)],
)
def test_the_highest_are_guessed_in_and_the_lowest_out(k_plus, k_minus, correct) -> None:
    assert correct_guesses(SCORES, INCLUDED, k_plus=k_plus, k_minus=k_minus) == correct


def test_equal_scores_stand_in_the_order_of_the_canaries() -> None:
    assert correct_guesses(np.zeros(6), INCLUDED, k_plus=3, k_minus=3) == 0
    assert correct_guesses(np.zeros(6), ~INCLUDED, k_plus=3, k_minus=3) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_plus": -1}, "k_plus=-1"),
        ({"k_plus": 4}, "k_plus=4"),
        ({"scores_M": SCORES[:5]}, "for each canary"),
        ({"scores_M": np.where(INCLUDED, np.nan, 1)}, "no NaN"),
        ({"delta": 1.0}, "delta=1.0"),
        ({"delta": float("nan")}, "delta=nan"),
        ({"confidence": 95}, "confidence=95"),
    ],
)
def test_what_cannot_be_audited_is_refused_by_name(change: dict, message: str) -> None:
    values = {"scores_M": SCORES, "included_M": INCLUDED, "k_plus": 3, "k_minus": 3, "delta": 0.0}
    with pytest.raises(ValueError, match=message):
        audit_guesses(**values | change)


# The real engine


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_reading_is_one_clip_norm_a_visit_and_nothing_without(monkeypatch, precision) -> None:
    monkeypatch.setattr(private, "add_gaussian_noise", no_noise)
    plan, included_M = dataclasses.replace(PLAN, steps=4), np.arange(CANARIES) % 3 > 0
    readings_TM, ledger = canary_readings(
        plan, included_M, precision=precision, generator=generator()
    )
    assert readings_TM.shape == (ledger.steps, CANARIES) == (4, CANARIES)
    assert not readings_TM[:, ~included_M].any()
    visited = readings_TM[:, included_M] > 0
    assert visited.mean() == pytest.approx(0.25, abs=0.03)
    sizes = readings_TM[:, included_M][visited]
    assert sizes.max() <= 1
    assert sizes.min() > 0.98


@pytest.mark.parametrize(
    ("plan", "precision"),
    [
        (PLAN, "float32"),
        (PLAN, "bfloat16"),
        (dataclasses.replace(FULL_BATCH, steps=8, noise_multiplier=9.0), "float32"),
        (dataclasses.replace(FULL_BATCH, steps=4, noise_multiplier=1.95), "bfloat16"),
    ],
)
def test_the_bound_of_the_real_engine_is_below_its_ledger_and_not_empty(plan, precision) -> None:
    found = audit(plan, precision=precision, seed=1)
    assert found.bound.canaries == CANARIES
    assert found.bound.guesses == 2 * GUESSES
    assert found.bound.confidence == 0.95
    assert 0.2 * found.ledger_epsilon < found.bound.epsilon <= found.ledger_epsilon
    assert not found.refutes_the_ledger
    assert 0.9 < found.ledger_epsilon < 4.5


def test_a_plan_without_noise_is_not_audited() -> None:
    with pytest.raises(ValueError, match="claims nothing"):
        audit(dataclasses.replace(PLAN, noise_multiplier=0.0))


def audit(plan: PrivacyPlan = PLAN, *, precision: str = "float32", seed: int = 0) -> EngineAudit:
    return audit_private_training(
        plan, k_plus=GUESSES, k_minus=GUESSES, precision=precision, generator=generator(seed)
    )


# Broken engines


def no_noise(sums: dict[str, Tensor], **_: object) -> None:
    pass


def noise_divided_by_the_batch_size(
    sums: dict[str, Tensor], *, standard_deviation: float, generator: np.random.Generator
) -> None:
    small = standard_deviation / PLAN.batch_size
    add_gaussian_noise(sums, standard_deviation=small, generator=generator)


def the_same_noise_every_step(
    sums: dict[str, Tensor], *, standard_deviation: float, generator: np.random.Generator
) -> None:
    again = np.random.Generator(np.random.Philox(7))
    add_gaussian_noise(sums, standard_deviation=standard_deviation, generator=again)


def every_record_twice(records: int, rate: float, generator: np.random.Generator) -> Tensor:
    return poisson_sample(records, rate, generator).repeat(2)


def every_record_in_every_step(records: int, rate: float, generator: np.random.Generator) -> Tensor:
    return torch.arange(records)


class ForgetfulLedger(Ledger):
    """Records every other step."""

    calls = 0

    def record_step(self, *, sampling_rate: float, noise_multiplier: float) -> None:
        self.calls += 1
        if self.calls % 2 == 0:
            super().record_step(sampling_rate=sampling_rate, noise_multiplier=noise_multiplier)


class PaddingCounts(ClippedSums):
    """Takes the padding of a micro-batch, which repeats its first record, for records."""

    def add(self, losses: Callable[[], Tensor], real_B: Tensor | None = None) -> ClippedBatch:
        return super().add(losses)


class ClippedApart:
    """Stands where ClippedSums does, and clips layers of each key apart from the others."""

    def __init__(
        self,
        model: nn.Module,
        *,
        max_grad_norm: float,
        key: Callable[[nn.Module], object],
        unclipped: object = None,
    ) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        groups: dict[object, set[int]] = {}
        for layer in model.modules():
            own = {id(p) for p in layer.parameters(recurse=False) if p.requires_grad}
            groups[key(layer)] = groups.get(key(layer), set()) | own
        self.parts: list[ClippedSums] = []
        for group, own in groups.items():
            for parameter in trained:
                parameter.requires_grad_(id(parameter) in own)
            bound = math.inf if group == unclipped else max_grad_norm
            self.parts += [ClippedSums(model, max_grad_norm=bound)] if own else []

    @property
    def sums(self) -> dict[str, Tensor]:
        return {name: total for part in self.parts for name, total in part.sums.items()}

    def zero(self) -> None:
        for part in self.parts:
            part.zero()

    def add(self, losses: Callable[[], Tensor], real_B: Tensor | None = None) -> ClippedBatch:
        first, *_ = [part.add(losses, real_B) for part in self.parts]
        return first


clipped_by_layer = partial(ClippedApart, key=id)
embeddings_unclipped = partial(
    ClippedApart, key=lambda layer: type(layer) is nn.Embedding, unclipped=True
)


def moved_by_one_record(make_model, make_inputs) -> float:
    """The norm by which removing record 0 moves WaveletGPT's un-noised sum, in clip norms."""
    sums = []
    for first in (0, 1):
        examples = caption_examples(make_inputs, first)
        plan = dataclasses.replace(PLAN, records=len(examples), batch_size=len(examples), steps=1)
        settings = Finetuning(lora_rank=0, precision="float32", micro_batch=9, caption_dropout=0.0)
        model = make_model()
        training = PrivateTraining(model, examples, plan, settings, generator=generator())
        with optimizer_gradients(model) as gradients:
            list(training.run())
        flat = torch.cat([own.double().flatten() for own in gradients[0].values()])
        sums.append(plan.batch_size * flat)
    return float((sums[0] - sums[1]).norm()) / PLAN.max_grad_norm


def caption_examples(make_inputs, first: int) -> Examples:
    """Random captions and codes of six records, without the `first` of them."""
    inputs = make_inputs(6)[slice(first, None)]
    captions = {
        "states": inputs.states_BLD,
        "mask": inputs.mask_BL,
        "count": torch.ones(len(inputs.mask_BL), dtype=torch.int64),
        "empty_states": torch.zeros_like(inputs.states_BLD[0]),
        "empty_mask": torch.arange(inputs.mask_BL.shape[1]) < 2,
    }
    return Examples(captions, {f"codes_{s}": codes for s, codes in enumerate(inputs.codes)})


def failed_checks(make_model, make_inputs, monkeypatch) -> set[str]:
    """What does not hold, looked at without an attack; random numbers may be 4.5 errors off."""
    plan, draws, rate = dataclasses.replace(PLAN, steps=6), 6 * CANARIES, PLAN.sampling_rate
    noise_TM, ledger = canary_readings(plan, np.zeros(CANARIES, dtype=bool), generator=generator())
    with np.errstate(invalid="ignore"):
        alike_TT = np.nan_to_num(np.corrcoef(noise_TM)) - np.eye(plan.steps)
    with monkeypatch.context() as quiet:
        quiet.setattr(private, "add_gaussian_noise", no_noise)
        signal_TM, _ = canary_readings(plan, np.ones(CANARIES, dtype=bool), generator=generator())
        moved = moved_by_one_record(make_model, make_inputs)
    drawn = float((signal_TM > 0).mean()) / rate
    sound = {
        "one record": 0.98 < moved <= 1 + 1e-5,
        "noise": abs(noise_TM.std() / plan.noise_multiplier - 1) < 4.5 / math.sqrt(2 * draws),
        "steps alike": alike_TT.max() < 4.5 / math.sqrt(CANARIES),
        "rate": abs(drawn - 1) < 4.5 * math.sqrt((1 - rate) / (rate * draws)),
        "steps": len(noise_TM) == ledger.steps,
    }
    return {name for name, holds in sound.items() if not holds}


ENGINES: dict[str, tuple[dict[str, object], set[str]]] = {
    "the real one": ({}, set()),
    "no noise": ({"add_gaussian_noise": no_noise}, {"audit", "noise"}),
    "small noise": (
        {"add_gaussian_noise": noise_divided_by_the_batch_size},
        {"audit", "noise"},
    ),
    "the same noise": ({"add_gaussian_noise": the_same_noise_every_step}, {"audit", "steps alike"}),
    "clipped by layer": ({"ClippedSums": clipped_by_layer}, {"audit", "one record"}),
    "embeddings unclipped": ({"ClippedSums": embeddings_unclipped}, {"audit", "one record"}),
    "every record twice": ({"poisson_sample": every_record_twice}, {"one record"}),
    "padding counts": ({"ClippedSums": PaddingCounts}, {"one record"}),
    "every record": ({"poisson_sample": every_record_in_every_step}, {"audit", "rate"}),
    "a forgetful ledger": ({"Ledger": ForgetfulLedger}, {"steps"}),
}


@pytest.mark.parametrize(("parts", "expected"), ENGINES.values(), ids=ENGINES)
def test_broken_engines_are_caught(
    make_model, make_inputs, monkeypatch, parts: dict, expected: set[str]
) -> None:
    for part, broken in parts.items():
        monkeypatch.setattr(private, part, broken)
    caught = failed_checks(make_model, make_inputs, monkeypatch)
    assert caught | ({"audit"} if audit().refutes_the_ledger else set()) == expected
