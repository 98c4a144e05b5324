"""Features, distances between sets of pictures, and readers of what captions name."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch

from dpwg.measure.attributes import (
    CLASSES,
    balanced_accuracy,
    captions,
    labels,
    train_readers,
)
from dpwg.measure.features import WIDTH, features, frechet_distance


def test_the_distance_of_normal_sets_is_the_known_one() -> None:
    draw = np.random.default_rng(0)
    a = draw.normal(size=(20_000, 3))
    b = draw.normal(size=(20_000, 3)) * [1, 2, 3] + [1, 0, 0]
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    # |mean difference|^2 + sum of (standard deviation - standard deviation)^2
    assert frechet_distance(a, b) == pytest.approx(1 + 1 + 4, rel=0.03)


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
