"""Who is in a step, and the noise: their distributions, by statistics from a seeded generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dpwg.privacy.mechanism import add_gaussian_noise, poisson_sample, system_generator


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def noise(shapes: dict[str, tuple[int, ...]], deviation: float, generator) -> dict[str, Tensor]:
    sums = {name: torch.zeros(shape) for name, shape in shapes.items()}
    add_gaussian_noise(sums, standard_deviation=deviation, generator=generator)
    return sums


@pytest.mark.parametrize("deviation", [1e-3, 1.0, 37.5])
def test_noise_is_normal_with_the_given_deviation(deviation: float) -> None:
    sums = noise({"a": (300, 100), "b": (20_000,)}, deviation, seeded())
    for total in sums.values():
        assert total.dtype == torch.float32
        assert stats.kstest(total.flatten().numpy() / deviation, "norm").pvalue > 1e-3
    both = torch.cat([total.flatten() for total in sums.values()])
    assert both.std().item() == pytest.approx(deviation, rel=4 / np.sqrt(2 * len(both)))


def test_every_coordinate_has_the_deviation() -> None:
    generator = seeded()
    draws = torch.stack([noise({"a": (5, 4)}, 2.0, generator)["a"] for _ in range(4000)])
    assert (draws.std(0) - 2.0).abs().max() < 4.5 * 2.0 / np.sqrt(2 * 4000)
    assert draws.mean(0).abs().max() < 4.5 * 2.0 / np.sqrt(4000)


def test_noise_is_independent_across_tensors_and_calls() -> None:
    generator = seeded()
    first, second = (noise({"a": (10_000,), "b": (10_000,)}, 1.0, generator) for _ in range(2))
    streams = torch.stack([first["a"], first["b"], second["a"], second["b"]])
    correlation = torch.corrcoef(streams) - torch.eye(4)
    assert correlation.abs().max() < 4.5 / np.sqrt(10_000)


def test_noise_is_added_to_what_is_there() -> None:
    sums = {"a": torch.full((50, 50), 10.0)}
    add_gaussian_noise(sums, standard_deviation=0.5, generator=seeded())
    expected = 10 + noise({"a": (50, 50)}, 0.5, seeded())["a"]
    torch.testing.assert_close(sums["a"], expected)
    assert not noise({"a": (100,)}, 0.0, seeded())["a"].any()


@pytest.mark.parametrize("deviation", [-1.0, float("nan"), float("inf")])
def test_a_deviation_out_of_range_is_refused(deviation: float) -> None:
    with pytest.raises(ValueError, match="standard_deviation"):
        noise({"a": (1,)}, deviation, seeded())


def test_sample_sizes_follow_the_binomial() -> None:
    generator, records, rate = seeded(), 40, 0.15
    sizes = [len(poisson_sample(records, rate, generator)) for _ in range(5000)]
    found = np.bincount(sizes, minlength=records + 1)
    expected = 5000 * stats.binom.pmf(np.arange(records + 1), records, rate)
    common = expected >= 10
    pooled = [np.append(x[common], x[~common].sum()) for x in (found, expected)]
    assert stats.chisquare(*pooled).pvalue > 1e-3


def test_every_record_joins_at_the_rate_and_independently_of_the_others() -> None:
    generator, records, rate, steps = seeded(), 12, 0.3, 5000
    joined = np.zeros((steps, records))
    for row in joined:
        row[poisson_sample(records, rate, generator).numpy()] = 1
    error = 4.5 * np.sqrt(rate * (1 - rate) / steps)
    assert np.abs(joined.mean(0) - rate).max() < error
    correlation = np.corrcoef(joined, rowvar=False) - np.eye(records)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(steps)
    assert abs(np.corrcoef(joined[1:, 0], joined[:-1, 0])[0, 1]) < 4.5 / np.sqrt(steps)


def test_rate_one_takes_everyone_and_a_tiny_rate_may_take_none() -> None:
    assert poisson_sample(7, 1.0, seeded()).tolist() == list(range(7))
    chosen = poisson_sample(1000, 0.5, seeded())
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(poisson_sample(7, 1e-12, seeded())) == 0


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0001, float("nan")])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        poisson_sample(10, rate, seeded())


def test_system_generators_give_different_streams() -> None:
    streams = {tuple(system_generator().integers(2**63, size=2).tolist()) for _ in range(20)}
    assert len(streams) == 20


def test_system_generators_do_not_listen_to_global_seeds() -> None:
    streams = set()
    for _ in range(2):
        np.random.seed(0)
        torch.manual_seed(0)
        streams.add(float(system_generator().random()))
    assert len(streams) == 2
