"""Membership inference: figures that follow from the scores; a model that leaks is found out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from dpwg.measure.membership import (
    MembershipAttack,
    calibrated_scores,
    membership_attack,
    nearest_records,
)
from dpwg.privacy.curves import max_true_positive_rate
from dpwg.training.public_model import Pretraining, pretrain

ABOUT: dict[str, Any] = {
    "checkpoint": "made/up", "weights": "0123", "reference": "made/public", "data": "some",
    "others": "more", "epsilon": 2.0, "delta": 1e-5,
}  # fmt: skip


def attacked(members: int, others: int, mean: float) -> MembershipAttack:
    """An attack whose scores are normal, those of members with a mean of their own."""
    scores = [
        np.random.default_rng(seed).normal(m, 1, size)
        for seed, (m, size) in enumerate(((mean, members), (0, others)))
    ]
    return membership_attack(*scores, **ABOUT)


def test_the_same_scores_on_both_sides_are_guessing() -> None:
    attack = attacked(4000, 4000, 0)
    assert attack.auc_low < 0.5 < attack.auc_high < attack.auc_low + 0.03
    for found in attack.true_positives:
        assert found.low <= found.false_positive_rate * 1.5
        assert found.rate < 3 * found.false_positive_rate


def test_rates_and_curve_are_those_of_two_normal_distributions() -> None:
    attack = attacked(20_000, 15_000, 1)
    assert attack.auc == pytest.approx(0.7602, abs=0.01)  # Phi(1 / sqrt(2))
    at_thousandth, at_hundredth = attack.true_positives
    assert at_hundredth.rate == pytest.approx(0.0924, abs=0.02)  # 1 - Phi(2.326 - 1)
    assert at_thousandth.low < at_thousandth.rate < at_thousandth.high
    assert at_hundredth.allowed == max_true_positive_rate(2.0, 1e-5, 0.01)
    false, true = np.array(attack.roc).T
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert min(np.diff(false).min(), np.diff(true).min()) >= 0
    assert np.trapezoid(true, false) == pytest.approx(attack.auc, abs=0.01)
    assert sum(attack.histogram["members"]) == 20_000
    assert sum(attack.histogram["nonmembers"]) == 15_000
    assert MembershipAttack.from_json(json.loads(json.dumps(attack.to_json()))) == attack


def test_perfect_scores_find_everyone_and_equal_ones_nobody() -> None:
    attack = membership_attack(np.arange(10.0, 20), np.arange(10.0), **ABOUT)
    tied = membership_attack(np.zeros(50), np.zeros(50), **ABOUT)
    assert (attack.auc, [found.rate for found in attack.true_positives]) == (1, [1, 1])
    assert (tied.auc, [found.rate for found in tied.true_positives]) == (0.5, [0, 0])


@pytest.mark.parametrize("scores", [np.zeros(1), np.array([0.0, np.nan]), np.zeros((2, 2))])
def test_scores_that_say_nothing_are_refused(scores) -> None:
    with pytest.raises(ValueError, match="finite scores of members"):
        membership_attack(scores, np.zeros(5), **ABOUT)


def test_a_model_that_learned_its_records_by_heart_is_found_out(
    make_model, make_examples, tmp_path
) -> None:
    records, model = make_examples((1,) * 80), make_model()
    settings = Pretraining(steps=150, batch=40, warmup=5, learning_rate=5e-3, caption_dropout=0.0)
    list(pretrain(model, records.first(40), settings, tmp_path))
    scores = calibrated_scores(model, make_model(), records).numpy()
    assert membership_attack(scores[:40], scores[40:], **ABOUT).auc_low > 0.9
    fewer = calibrated_scores(model, make_model(), records.first(7)).numpy()
    np.testing.assert_allclose(fewer, scores[:7], atol=0.02)


def test_the_nearest_record_is_the_image_itself(images) -> None:
    indices, distances = nearest_records(images[[5, 2]], images, 3)
    assert indices[:, 0].tolist() == [5, 2]
    assert distances[:, 0].max() < 1e-3
    expected = (images[5] - images[indices[0, 1]]).square().mean().sqrt()
    torch.testing.assert_close(distances[0, 1], expected, atol=1e-4, rtol=0)
    for part, count in ((images[:1, :, ::2, ::2], 1), (images[:1], 99)):
        with pytest.raises(ValueError, match="Expected"):
            nearest_records(part, images, count)
