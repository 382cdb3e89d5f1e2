"""Filters and shifts against scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_weights.functional.corruptions.taps import (
    disk,
    drag,
    enlarge,
    gaussian_weights,
    inside,
    interpolate,
    smooth,
    weigh_taps,
)

SCIPY = {"edge": "nearest", "mirror": "mirror", "symmetric": "reflect"}


def images(count=2, channels=2, height=9, width=13):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("border", SCIPY)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_borders_are_numpys(border, size):
    pad = {"edge": "edge", "mirror": "reflect", "symmetric": "symmetric"}[border]
    expected = np.pad(np.arange(size), 7, mode=pad)
    assert inside(torch.arange(-7, size + 7), size, border).tolist() == expected.tolist()


@pytest.mark.parametrize("border", SCIPY)
@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.0, 6.0])
def test_smooth_is_scipys(border, sigma):
    x = images()
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode=SCIPY[border], truncate=3.0)
    torch.testing.assert_close(smooth(x, sigma, truncate=3.0, border=border), torch.from_numpy(expected))


def test_smooth_signals_is_scipys():
    x = images()[:, 0]
    expected = ndimage.gaussian_filter1d(x.numpy(), 1.5, axis=2, mode="nearest", truncate=4.0)
    torch.testing.assert_close(smooth(x, 1.5), torch.from_numpy(expected))


def test_weights():
    assert gaussian_weights(0.7, 3).sum() == pytest.approx(1)
    assert gaussian_weights(2.0, 2)[0] / gaussian_weights(2.0, 2)[2] == pytest.approx(np.exp(-0.5))


def test_weigh_taps_is_a_matrix_product():
    x = images()
    places = torch.tensor([[0, 3], [2, 2], [8, 1]])
    weights = torch.tensor([[0.5, 0.25], [1.0, -1.0], [2.0, 0.0]], dtype=torch.float64)
    matrix = torch.zeros(3, 9, dtype=torch.float64)
    for row in range(3):
        for place, weight in zip(places[row], weights[row], strict=True):
            matrix[row, place] += weight
    torch.testing.assert_close(weigh_taps(x, 2, places, weights), torch.einsum("rh,nchw->ncrw", matrix, x))


@pytest.mark.parametrize("factor", [1.0, 1.06, 1.75, 3.0])
def test_enlarge_is_scipys(factor):
    x = images()
    middles = [0, 0, 4.0, 6.0]
    scales = [1, 1, 1 / factor, 1 / factor]
    offsets = [middle - middle * scale for middle, scale in zip(middles, scales, strict=True)]
    expected = ndimage.affine_transform(x.numpy(), scales, offsets, order=1, mode="nearest")
    torch.testing.assert_close(enlarge(x, factor), torch.from_numpy(expected))


@pytest.mark.parametrize("border", ["mirror", "symmetric"])
def test_interpolate_is_scipys(border):
    x = images()
    generator = torch.Generator().manual_seed(1)
    rows = torch.rand(2, 5, 6, generator=generator, dtype=torch.float64) * 16 - 4
    columns = torch.rand(2, 5, 6, generator=generator, dtype=torch.float64) * 20 - 4
    expected = [
        [ndimage.map_coordinates(c, [rows[n], columns[n]], order=1, mode=SCIPY[border]) for c in x[n].numpy()]
        for n in range(2)
    ]
    torch.testing.assert_close(interpolate(x, rows, columns, border), torch.from_numpy(np.array(expected)))


@pytest.mark.parametrize(("degrees", "step"), [(0, (0, 1)), (90, (1, 0)), (180, (0, -1)), (45, None), (-30, None)])
def test_drag_follows_its_direction(degrees, step):
    x = images(count=1)
    weights = np.exp(-0.5 * (np.arange(7) / 1.5) ** 2)
    weights /= weights.sum()
    expected = torch.zeros_like(x)
    for i, weight in enumerate(weights):
        turn = np.deg2rad(degrees)
        down, right = np.ceil(i * np.sin(turn) - 0.5), np.ceil(i * np.cos(turn) - 0.5)
        if step is not None:
            assert (down, right) == (i * step[0], i * step[1])
        rows = np.clip(np.arange(9) + int(down), 0, 8)
        columns = np.clip(np.arange(13) + int(right), 0, 12)
        expected += weight * x[:, :, rows][:, :, :, columns]
    torch.testing.assert_close(drag(x, 3.0, 1.5, torch.tensor([float(degrees)])), expected)


def test_every_sample_is_dragged_its_own_way():
    x = images()
    both = drag(x, 2.0, 1.0, torch.tensor([10.0, -70.0]))
    assert torch.equal(both[1:], drag(x[1:], 2.0, 1.0, torch.tensor([-70.0])))


@pytest.mark.parametrize(("radius", "inside_it"), [(0.3, 1), (1.0, 5), (1.5, 9), (2.0, 13), (3.0, 29)])
def test_disks(radius, inside_it):
    sharp = disk(radius, 0.0)
    assert (sharp > 0).sum() == inside_it
    assert sharp.unique().tolist() == pytest.approx([0, 1 / inside_it])
    soft = disk(radius, 0.6)
    assert soft.sum() == pytest.approx(1)
    flat = np.pad(sharp.numpy(), 3)
    expected = ndimage.gaussian_filter(flat, 0.6, truncate=1.5, mode="constant")
    np.testing.assert_allclose(np.pad(soft.numpy(), 3), expected, atol=1e-12)
