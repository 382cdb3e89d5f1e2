"""Scaling against Pillow and bending against scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_weights.functional.corruptions import SampleNoise, corrupt, elastic_transform
from lightning_weights.functional.corruptions.digital import _moved
from tests.functional.corruptions.test_registry import pictures


@pytest.mark.parametrize("factor", [0.95, 0.65, 0.3, 0.05, 1.0])
@pytest.mark.parametrize("size", [(32, 32), (17, 22)])
def test_pixelate_is_pillows(factor, size):
    image = pytest.importorskip("PIL.Image")
    images = pictures(1, channels=1, height=size[0], width=size[1])
    small = tuple(max(1, int(length * factor)) for length in reversed(size))
    expected = image.fromarray(images[0, 0].numpy(), mode="F").resize(small, image.Resampling.BOX)
    expected = np.array(expected.resize(tuple(reversed(size)), image.Resampling.BOX))
    found = corrupt(images, "pixelate", strength=factor)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-6)


def test_corners_are_moved():
    height, width, shift = 20, 24, 3.0
    rows, columns = _moved(SampleNoise(0, [2]), height, width, shift)
    offsets = SampleNoise(0, [2]).uniform(3, 2, low=-shift, high=shift)[0].double()
    corners = torch.tensor([[12.0, 10.0]]) + 6 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    assert 0 < offsets.abs().max() <= shift
    for (x, y), (dx, dy) in zip(corners.tolist(), offsets.tolist(), strict=True):
        # where to read from is linear in the place: what lies at a moved corner comes from the corner
        for plane, expected in ((columns[0], x), (rows[0], y)):
            across, down = plane[0, 1] - plane[0, 0], plane[1, 0] - plane[0, 0]
            assert float(plane[0, 0] + across * (x + dx) + down * (y + dy)) == pytest.approx(expected)


def test_bends_are_scipys():
    images = pictures(1, channels=1, height=32, width=32)
    noise = SampleNoise(3, [0])
    noise.uniform(3, 2)
    bends = noise.uniform(2, 32, 32, low=-1.0, high=1.0)[0].numpy()
    bends = [ndimage.gaussian_filter(b, 1.28, mode="reflect", truncate=3.0) * 3.2 for b in bends]
    grid = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    places = [axis + bend for axis, bend in zip(grid, bends, strict=True)]
    expected = ndimage.map_coordinates(images[0, 0].numpy(), places, order=1, mode="reflect")
    found = elastic_transform(images, SampleNoise(3, [0]), 3.2, 1.28, 0.0)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=2e-5)


def test_every_sample_is_bent_its_own_way():
    same = pictures(1).expand(2, -1, -1, -1)
    first, second = corrupt(same, "elastic_transform", severity=3)
    assert (first - second).abs().max() > 0.05
