"""Membership inference: figures that follow from the scores; a model that leaks is found out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dpwg.measure.membership import calibrated_scores, membership_attack, nearest_records
from dpwg.privacy.curves import max_true_positive_rate
from dpwg.training.examples import Examples
from dpwg.training.public_model import Pretraining, pretrain

ABOUT = {
    "checkpoint": "made/up",
    "weights": "0123",
    "reference": "made/public",
    "data": "some",
    "others": "more",
    "epsilon": 2.0,
    "delta": 1e-5,
}


def normal(size: int, mean: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, size)


def test_the_same_scores_on_both_sides_are_guessing() -> None:
    attack = membership_attack(normal(4000, 0, 0), normal(4000, 0, 1), **ABOUT)
    assert attack.auc_low < 0.5 < attack.auc_high
    assert attack.auc_high - attack.auc_low < 0.03
    for found in attack.true_positives:
        assert found.low <= found.false_positive_rate * 1.5
        assert found.rate < 3 * found.false_positive_rate


def test_rates_are_those_of_two_normal_distributions() -> None:
    attack = membership_attack(normal(20_000, 1, 0), normal(20_000, 0, 1), **ABOUT)
    assert attack.auc == pytest.approx(0.7602, abs=0.01)  # Phi(1 / sqrt(2))
    at_thousandth, at_hundredth = attack.true_positives
    assert at_hundredth.rate == pytest.approx(0.0924, abs=0.02)  # 1 - Phi(2.326 - 1)
    assert at_thousandth.low < at_thousandth.rate < at_thousandth.high
    assert at_hundredth.allowed == max_true_positive_rate(2.0, 1e-5, 0.01)


def test_perfect_scores_find_everyone_and_false_alarms_stay_within_their_rate() -> None:
    attack = membership_attack(np.arange(10.0, 20), np.arange(10.0), **ABOUT)
    assert attack.auc == 1
    assert [found.rate for found in attack.true_positives] == [1, 1]
    tied = membership_attack(np.zeros(50), np.zeros(50), **ABOUT)
    assert tied.auc == 0.5
    assert [found.rate for found in tied.true_positives] == [0, 0]


def test_the_roc_rises_from_none_to_all_and_holds_the_area() -> None:
    attack = membership_attack(normal(3000, 1, 0), normal(2000, 0, 1), **ABOUT)
    false, true = np.array(attack.roc).T
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    assert np.trapezoid(true, false) == pytest.approx(attack.auc, abs=0.01)
    assert sum(attack.histogram["members"]) == 3000
    assert sum(attack.histogram["nonmembers"]) == 2000
    assert len(attack.histogram["edges"]) == len(attack.histogram["members"]) + 1
    assert json.loads(json.dumps(attack.to_json()))["members"] == 3000


@pytest.mark.parametrize("scores", [np.zeros(1), np.array([0.0, np.nan]), np.zeros((2, 2))])
def test_scores_that_say_nothing_are_refused(scores) -> None:
    with pytest.raises(ValueError, match="finite scores of members"):
        membership_attack(scores, np.zeros(5), **ABOUT)


def test_a_model_that_learned_its_records_by_heart_is_found_out(
    make_model, make_inputs, tmp_path
) -> None:
    def examples(seed: int) -> Examples:
        inputs = make_inputs(40, seed=seed)
        captions = {
            "states": inputs.states_BLD,
            "mask": inputs.mask_BL,
            "count": torch.ones(40, dtype=torch.int64),
            "empty_states": torch.zeros(5, 8),
            "empty_mask": torch.arange(5) < 2,
        }
        return Examples(captions, {f"codes_{s}": c for s, c in enumerate(inputs.codes)})

    members, others, model = examples(0), examples(1), make_model()
    settings = Pretraining(steps=150, batch=40, warmup=5, learning_rate=5e-3, caption_dropout=0.0)
    list(pretrain(model, members, settings, tmp_path))
    scores = [calibrated_scores(model, make_model(), part).numpy() for part in (members, others)]
    attack = membership_attack(*scores, **ABOUT)
    assert attack.auc_low > 0.9
    fewer = calibrated_scores(model, make_model(), members.first(7)).numpy()
    np.testing.assert_allclose(fewer, scores[0][:7], atol=0.02)


def test_the_nearest_record_is_the_image_itself(images) -> None:
    indices, distances = nearest_records(images[[5, 2]], images, 3)
    assert indices[:, 0].tolist() == [5, 2]
    assert distances[:, 0].max() < 1e-3
    expected = (images[5] - images[indices[0, 1]]).square().mean().sqrt()
    torch.testing.assert_close(distances[0, 1], expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"one size.*resize"):
        nearest_records(images[:1, :, ::2, ::2], images, 1)
    with pytest.raises(ValueError, match="count=99"):
        nearest_records(images[:1], images, 99)
