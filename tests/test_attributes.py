"""Features, distances between sets of pictures, and readers of what captions name."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch

from dpwg.data import open_records
from dpwg.measure.attributes import (
    CLASSES,
    balanced_accuracy,
    captions,
    labels,
    train_readers,
)
from dpwg.measure.features import (
    WIDTH,
    features,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from dpwg.measure.pictures import Nearness
from dpwg.measure.releases import quality_of
from dpwg.method.sampling import Sampling
from dpwg.training.optimizer import finished


def test_the_distance_of_normal_sets_is_the_known_one() -> None:
    draw = np.random.default_rng(0)
    a = draw.normal(size=(20_000, 3))
    b = draw.normal(size=(20_000, 3)) * [1, 2, 3] + [1, 0, 0]
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    # |mean difference|^2 + sum of (standard deviation - standard deviation)^2
    assert frechet_distance(a, b) == pytest.approx(1 + 1 + 4, rel=0.03)


def test_the_kernel_distance_is_without_bias() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 500, 4))
    near = [kernel_distance(*draw.normal(size=(2, 60, 4))) for _ in range(40)]
    assert abs(np.mean(near)) < 3 * np.std(near) / 40**0.5
    # of points a = 1 and b = 0 in one dimension: (1 + 1)^3 + 1 - 2
    assert kernel_distance(np.ones((9, 1)), np.zeros((9, 1))) == pytest.approx(7000)
    assert kernel_distance(a, b + 0.5) > kernel_distance(a, b + 0.2) > kernel_distance(a, b)


def test_precision_and_recall_see_what_is_too_much_and_what_is_missing() -> None:
    real = np.random.default_rng(0).normal(size=(400, 2))
    real[:200] += 30  # two kinds
    one_kind = np.random.default_rng(1).normal(size=(200, 2))
    precision, recall = precision_recall(one_kind, real)
    assert precision > 0.9
    assert 0.4 < recall < 0.55
    precision, recall = precision_recall(np.concatenate((real, real + 90)), real)
    assert (precision, recall) == (0.5, 1.0)


def test_intervals_are_around_their_values() -> None:
    draw = np.random.default_rng(0)
    near = Nearness.of(draw.normal(size=(200, 5)), draw.normal(size=(300, 5)) + 0.3)
    for value, low, high in (near.frechet, near.kernel):
        assert low < value < high
    assert near.frechet[1] > 0


@pytest.mark.slow
def test_pictures_of_a_checkpoint_are_measured(tmp_path, image_folder) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    held_out = open_records(str(image_folder))
    steps = quality_of(["faces/eps-10"], held_out, Sampling(candidates=1), 10, 10, tmp_path)
    found = finished(steps)
    (row,) = found["checkpoints"]
    assert row["pictures"] == 10
    assert row["frechet"][0] > found["ceilings"][0]["frechet"][0] > 0
    assert row["spread_of_one_caption"] > 0
    again = finished(quality_of([], held_out, Sampling(), 10, 10, tmp_path))
    assert again["floor"] == found["floor"]


def test_features_tell_pictures_apart_whatever_their_batch() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    image_NHWC = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    image_NHWC[1] = 200
    all_ND = features(image_NHWC)
    assert all_ND.shape == (3, WIDTH)
    np.testing.assert_allclose(features(image_NHWC[1:2]), all_ND[1:2], atol=1e-4)
    assert np.abs(all_ND[0] - all_ND[1]).mean() > 2 * np.abs(all_ND[0] - all_ND[2]).mean() > 0


def test_captions_name_every_class_about_equally_often() -> None:
    drawn = captions(960, seed=3)
    for name, classes in CLASSES.items():
        counts = collections.Counter(known[name] for _, known in drawn if name in known)
        assert set(counts) == set(range(len(classes)))
        assert min(counts.values()) > 0.2 * sum(counts.values()) / len(classes) * 2
    assert all(("beard" in known) == (known["gender"] == 1) for _, known in drawn)
    assert all(("beard" in text) == bool(known.get("beard")) for text, known in drawn)


def test_what_is_in_doubt_is_no_label() -> None:
    plain = dict.fromkeys(
        ("Male", "Wearing_Hat", "Eyeglasses", "Smiling", "Bald", "No_Beard", "Black_Hair",
         "Blond_Hair", "Brown_Hair", "Gray_Hair"), False,
    )  # fmt: skip
    assert "hair" not in labels(plain)
    assert labels(plain | {"Brown_Hair": True})["hair"] == 2
    assert "hair" not in labels(plain | {"Brown_Hair": True, "Wearing_Hat": True})
    assert "hair" not in labels(plain | {"Brown_Hair": True, "Gray_Hair": True})
    assert "beard" not in labels(plain)
    assert labels(plain | {"Male": True})["beard"] == 1


def test_readers_find_what_features_hold_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    known = [labelled for _, labelled in captions(1200)]
    features_ND = torch.randn(1200, 24, generator=generator).numpy()
    for place, name in enumerate(("gender", "glasses", "hair")):
        for row, labelled in enumerate(known):
            features_ND[row, 4 * place + labelled.get(name, 0)] += 4
    readers = train_readers(features_ND[:800], known[:800])
    right = balanced_accuracy(readers, features_ND[800:], known[800:])
    assert min(right["gender"], right["glasses"], right["hair"]) > 0.95
    assert 0.4 < right["smile"] < 0.6
    assert right["mean"] == pytest.approx(np.mean([right[name] for name in CLASSES]))
