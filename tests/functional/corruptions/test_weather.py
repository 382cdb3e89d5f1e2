"""Weather: plasma against a loop over points, and what each recipe promises."""

import numpy as np
import pytest
import torch

from lightning_weights.functional.corruptions import SampleNoise, corrupt, fog, frost_texture, snow, spatter
from lightning_weights.functional.corruptions.plasma import plasma
from lightning_weights.functional.corruptions.weather import MUD, WATER, grey
from tests.functional.corruptions.test_registry import pictures


def plasma_of_points(noise, size, decay):
    """Return a cloud, point by point on a torus."""
    heights = np.zeros((size, size))
    step, reach = size, 1.0
    while step > 1:
        half, cells = step // 2, size // step
        draws = [noise.uniform(cells, cells, low=-reach, high=reach)[0].numpy() for _ in range(3)]

        def around(row, column, ways, half=half):
            return sum(heights[(row + half * i) % size, (column + half * j) % size] for i, j in ways) / 4

        corners, beside = [(-1, -1), (-1, 1), (1, -1), (1, 1)], [(-1, 0), (1, 0), (0, -1), (0, 1)]
        for number, (down, right) in enumerate([(half, half), (0, half), (half, 0)]):
            for i in range(cells):
                for j in range(cells):
                    row, column = i * step + down, j * step + right
                    mean = around(row, column, corners if number == 0 else beside)
                    heights[row, column] = mean + draws[number][i, j]
        step, reach = half, reach / decay**2
    heights -= heights.min()
    return heights / heights.max()


@pytest.mark.parametrize("decay", [3.0, 1.5])
def test_plasma_is_midpoint_displacement(decay):
    cloud = plasma(SampleNoise(1, [4]), 16, 16, decay)
    expected = plasma_of_points(SampleNoise(1, [4]), 16, decay)
    np.testing.assert_allclose(cloud[0, 0].numpy(), expected, atol=1e-5)


def test_rough_clouds_have_larger_steps():
    steps = [float(plasma(SampleNoise(0, range(8)), 32, 32, decay).diff(dim=3).abs().mean()) for decay in (3, 1.75)]
    assert steps[0] < steps[1]


def test_fog_leaves_the_brightest_and_lifts_the_rest():
    images = pictures(height=32, width=32)
    foggy = fog(images, SampleNoise(0, range(4)), 1.0, 2.0)
    brightest = images.amax((1, 2, 3))
    assert (foggy.amax((1, 2, 3)) <= brightest + 1e-6).all()
    assert foggy.std() < images.std()
    # undone, it is a cloud of grey
    cloud = foggy * (brightest + 1).view(-1, 1, 1, 1) / brightest.view(-1, 1, 1, 1) - images
    torch.testing.assert_close(cloud[:, 0], cloud[:, 2], atol=1e-5, rtol=0)
    assert -1e-5 < cloud.min() < cloud.max() < 1 + 1e-5


def test_frost_is_a_blend_with_a_grey_texture():
    images = pictures(height=32, width=32)
    texture = (frost_texture(images, SampleNoise(0, range(4)), 0.75, 0.45) - 0.75 * images) / 0.45
    assert -1e-5 < texture.min() < 0.2
    assert 0.8 < texture.max() < 1 + 1e-5
    torch.testing.assert_close(texture[:, 0], texture[:, 1], atol=1e-5, rtol=0)
    assert 0.1 < texture.mean() < 0.9


def test_snow_falls_and_makes_pale():
    images = pictures(height=32, width=32) / 2
    snowy = snow(images, SampleNoise(0, range(4)), 0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)
    pale = 0.8 * images + 0.2 * torch.maximum(images, grey(images) * 1.5 + 0.5)
    flakes = snowy - pale
    assert flakes.min() > -1e-6
    torch.testing.assert_close(flakes, flakes.flip(2, 3))
    assert flakes.mean() > 0.05
    calm = snow(images, SampleNoise(0, range(4)), 0.1, 0.2, 1.0, 10.0, 8, 3, 0.8)
    torch.testing.assert_close(calm, pale)


def test_mud_covers_and_water_brightens():
    images = pictures(height=32, width=32)
    muddy = corrupt(images, "spatter", severity=5)
    hidden = (muddy - torch.tensor(MUD).view(1, 3, 1, 1)).abs().amax(1) < 0.2 * 1.01
    assert 0.02 < hidden.float().mean() < 0.9
    assert ((muddy == images).all(1) | hidden).all()
    wet = spatter(images, SampleNoise(0, range(4)), 0.65, 0.1, 0.8, 0.7, 0.5, 0) - images
    assert wet.min() > -1e-6
    torch.testing.assert_close(wet.amax((2, 3)), 0.5 * torch.tensor(WATER).expand(4, 3))
    assert 0.3 < (wet == 0).float().mean() < 1


def test_no_splash_leaves_the_image():
    images = pictures()
    dry = spatter(images, SampleNoise(0, range(4)), 0.0, 0.1, 0.8, 0.7, 0.5, 0)
    assert torch.equal(dry, images)


def test_grey_is_pillows():
    assert grey(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)).item() == pytest.approx(0.299)
    assert grey(torch.ones(1, 1, 2, 2)).shape == (1, 1, 2, 2)
