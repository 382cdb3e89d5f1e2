"""Noise: moments and exact chances."""

import pytest
import torch

from lightning_weights.functional.corruptions import SampleNoise, corrupt, gaussian_noise, shot_noise, speckle_noise

SIZE = (4, 1, 100, 100)


@pytest.mark.parametrize("value", [0.3, 0.6])
def test_gaussian_noise(value):
    change = gaussian_noise(torch.full(SIZE, value), SampleNoise(0, range(4)), 0.1) - value
    assert change.mean() == pytest.approx(0, abs=0.003)
    assert change.std() == pytest.approx(0.1, rel=0.02)
    assert (change**4).mean() / change.var() ** 2 == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("value", [0.3, 0.6])
def test_speckle_noise_grows_with_the_value(value):
    change = speckle_noise(torch.full(SIZE, value), SampleNoise(0, range(4)), 0.2) - value
    assert change.mean() == pytest.approx(0, abs=0.003)
    assert change.std() == pytest.approx(0.2 * value, rel=0.02)


@pytest.mark.parametrize("photons", [500, 50])
def test_shot_noise_counts(photons):
    changed = shot_noise(torch.full(SIZE, 0.4), SampleNoise(0, range(4)), photons)
    counts = changed * photons
    torch.testing.assert_close(counts, counts.round(), atol=1e-3, rtol=0)
    assert changed.mean() == pytest.approx(0.4, rel=0.01)
    assert changed.var() == pytest.approx(0.4 / photons, rel=0.03)


def test_impulse_noise_replaces_by_chance():
    changed = corrupt(torch.full(SIZE, 0.5), "impulse_noise", severity=5)
    assert changed.unique().tolist() == [0, 0.5, 1]
    assert (changed == 0).float().mean() == pytest.approx(0.035, rel=0.1)
    assert (changed == 1).float().mean() == pytest.approx(0.035, rel=0.1)


def test_channels_have_noise_of_their_own():
    changed = corrupt(torch.full((1, 3, 8, 8), 0.5), "gaussian_noise")
    assert not torch.equal(changed[:, 0], changed[:, 1])
