"""Who is in a step, and the noise: their distributions, by statistics from a seeded generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dpwg.privacy.mechanism import add_gaussian_noise, poisson_sample, system_generator


def seeded() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(0))


def noise(deviation: float, generator, *shape: int) -> Tensor:
    """Of two tensors of that shape, one behind the other."""
    sums = {name: torch.zeros(shape) for name in "ab"}
    add_gaussian_noise(sums, standard_deviation=deviation, generator=generator)
    return torch.stack([*sums.values()])


@pytest.mark.parametrize("deviation", [1e-3, 37.5])
def test_noise_is_normal_with_the_given_deviation(deviation: float) -> None:
    both = noise(deviation, seeded(), 150, 100)
    assert both.dtype == torch.float32
    for one in both:
        assert stats.kstest(one.flatten().numpy() / deviation, "norm").pvalue > 1e-3
    assert both.std().item() == pytest.approx(deviation, rel=4 / np.sqrt(2 * both.numel()))


def test_every_coordinate_has_noise_of_its_own_in_every_call() -> None:
    generator, draws = seeded(), 4000
    drawn = torch.stack([noise(2.0, generator, 5, 2).flatten() for _ in range(draws)])
    assert (drawn.std(0) - 2.0).abs().max() < 4.5 * 2.0 / np.sqrt(2 * draws)
    assert drawn.mean(0).abs().max() < 4.5 * 2.0 / np.sqrt(draws)
    streams = torch.cat([drawn[1:], drawn[:-1]], dim=1).T  # a call and the one before it
    correlation = torch.corrcoef(streams) - torch.eye(len(streams))
    assert correlation.abs().max() < 5 / np.sqrt(draws)


def test_noise_is_added_to_what_is_there() -> None:
    sums = {name: torch.full((50,), 10.0) for name in "ab"}
    add_gaussian_noise(sums, standard_deviation=0.5, generator=seeded())
    torch.testing.assert_close(torch.stack([*sums.values()]), 10 + noise(0.5, seeded(), 50))
    assert not noise(0.0, seeded(), 100).any()


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
    found = np.bincount(joined.sum(1).astype(int), minlength=records + 1)
    expected = steps * stats.binom.pmf(np.arange(records + 1), records, rate)
    common = expected >= 10
    pooled = [np.append(x[common], x[~common].sum()) for x in (found, expected)]
    assert stats.chisquare(*pooled).pvalue > 1e-3


def test_rate_one_takes_everyone_and_a_tiny_rate_may_take_none() -> None:
    assert poisson_sample(7, 1.0, seeded()).tolist() == list(range(7))
    chosen = poisson_sample(1000, 0.5, seeded())
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(poisson_sample(7, 1e-12, seeded())) == 0


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_what_is_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="standard_deviation"):
        noise(value, seeded(), 1)
    for rate in (value, 0.0, 1.0001):
        with pytest.raises(ValueError, match="rate"):
            poisson_sample(10, rate, seeded())


def test_system_generators_differ_and_do_not_listen_to_global_seeds() -> None:
    streams = set()
    for _ in range(20):
        np.random.seed(0)
        torch.manual_seed(0)
        streams.add(float(system_generator().random()))
    assert len(streams) == 20
