"""Every sample's own stream: independent of the others, and with the right distribution."""

import pytest
import torch

from lightning_weights.functional.corruptions import SampleNoise


def draws(noise):
    return [noise.uniform(5), noise.normal(2, 3), noise.integers(0, 100, 4), noise.poisson(torch.full((1, 6), 9.0))]


def test_a_stream_depends_on_index_and_seed():
    first, again = draws(SampleNoise(3, [7])), draws(SampleNoise(3, [7]))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (SampleNoise(3, [8]), SampleNoise(4, [7]), SampleNoise(7, [3])):
        assert not any(torch.equal(a, b) for a, b in zip(first, draws(other), strict=True))


def test_streams_go_on_and_do_not_mix():
    noise = SampleNoise(0, [1, 2, 3])
    one, two = noise.uniform(4), noise.uniform(4)
    assert not torch.equal(one, two)
    single = SampleNoise(0, [2])
    assert torch.equal(one[1], single.uniform(4)[0])
    assert torch.equal(two[1], single.uniform(4)[0])


def test_neighbours_are_not_correlated():
    numbers = SampleNoise(0, range(200)).normal(50)
    matrix = torch.corrcoef(numbers)
    off_diagonal = matrix[~torch.eye(200, dtype=torch.bool)]
    # of 50 numbers each: a standard deviation of 1 / 7
    assert off_diagonal.abs().max() < 5 / 7
    assert off_diagonal.mean().abs() < 0.01
    assert off_diagonal.std() == pytest.approx(1 / 7, rel=0.1)


def test_large_indices_are_numbers_of_their_own():
    numbers = SampleNoise(0, [5, 5 + 2**40, 5 + 2**52]).uniform(3)
    assert len(numbers.unique()) == 9


def test_ends():
    numbers = SampleNoise(0, range(50)).uniform(100, low=-45.0, high=45.0)
    assert -45 <= numbers.min() < -44.9
    assert 44.9 < numbers.max() <= 45
    whole = SampleNoise(0, range(50)).integers(-1, 1, 10)
    assert whole.unique().tolist() == [-1, 0]
