"""Blurs against scipy, and what glass does to pixels."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_weights.functional.corruptions import SampleNoise, corrupt, glass_blur, motion_blur
from lightning_weights.functional.corruptions.taps import disk, drag, enlarge
from tests.functional.corruptions.test_registry import pictures


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.4), (2, 0.6), (3, 0.7), (4, 0.8), (5, 1.0)])
def test_gaussian_blur_is_scipys(severity, sigma):
    images = pictures(height=32, width=40)
    expected = ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest")
    torch.testing.assert_close(corrupt(images, "gaussian_blur", severity), torch.from_numpy(expected))


@pytest.mark.parametrize(("severity", "radius", "sigma"), [(1, 0.3, 0.4), (4, 1.0, 0.2), (5, 1.5, 0.1)])
def test_defocus_blur_is_scipys_correlation(severity, radius, sigma):
    images = pictures(height=32, width=32)
    kernel = disk(radius, sigma).numpy()[None, None]
    expected = ndimage.correlate(images.double().numpy(), kernel, mode="mirror")
    torch.testing.assert_close(corrupt(images, "defocus_blur", severity), torch.from_numpy(expected).float())


def test_glass_moves_pixels_and_keeps_them():
    images = pictures(count=3, height=12, width=12)
    moved = glass_blur(images, SampleNoise(0, range(3)), 0.0, 1, 2)
    assert (moved != images).float().mean() > 0.5
    colors = images.flatten(2).transpose(1, 2).tolist(), moved.flatten(2).transpose(1, 2).tolist()
    assert [sorted(pixels) for pixels in colors[0]] == [sorted(pixels) for pixels in colors[1]]


def test_glass_exchanges_like_a_loop_over_pixels():
    size, reach = 7, 2
    x = torch.arange(49.0).reshape(1, 1, size, size)
    places = [(h, w) for h in range(size - reach, reach, -1) for w in range(size - reach, reach, -1)]
    moves = SampleNoise(5, [3]).integers(-reach, reach, 2, len(places))[0]
    expected = x[0, 0].tolist()
    for number, (h, w) in enumerate(places):
        other = h + int(moves[0, number]), w + int(moves[1, number])
        expected[h][w], expected[other[0]][other[1]] = expected[other[0]][other[1]], expected[h][w]
    # 2 pixels here are 2 * 32 / 7 of an image of 32
    found = glass_blur(x, SampleNoise(5, [3]), 0.0, reach * 32 / size, 1)
    assert found[0, 0].tolist() == expected


def test_motion_blur_draws_directions():
    images = pictures(count=3, height=32, width=32)
    angles = SampleNoise(2, range(3)).uniform(low=-45.0, high=45.0)
    assert angles.shape == (3,)
    expected = drag(images, 8, 2, angles)
    torch.testing.assert_close(motion_blur(images, SampleNoise(2, range(3)), 8, 2), expected)


def test_zoom_blur_is_a_mean():
    images = pictures(height=32, width=32)
    zooms = np.arange(1, 1.06, 0.01)
    expected = (images + sum(enlarge(images, float(zoom)) for zoom in zooms)) / (len(zooms) + 1)
    torch.testing.assert_close(corrupt(images, "zoom_blur", severity=1), expected)
