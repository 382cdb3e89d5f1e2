"""Colours against python's own conversions."""

import colorsys

import pytest
import torch

from lightning_weights.functional.corruptions import SampleNoise, brightness, corrupt, saturate
from tests.functional.corruptions.test_registry import pictures


def by_pixel(images, change):
    """Return images of which each pixel's hue, saturation and value were changed by colorsys."""
    out = torch.empty_like(images)
    for n, _, h, w in torch.cartesian_prod(*map(torch.arange, (len(images), 1, *images.shape[2:]))).tolist():
        hue, saturation, value = change(*colorsys.rgb_to_hsv(*images[n, :, h, w].tolist()))
        out[n, :, h, w] = torch.tensor(colorsys.hsv_to_rgb(hue, saturation, value))
    return out


def colors():
    images = pictures(2, height=6, width=5)
    images[0, :, 0, 0] = 0  # black
    images[0, :, 0, 1] = 0.4  # grey
    images[0, :, 0, 2] = 1  # white
    images[0, :, 0, 3] = torch.tensor([1.0, 0.0, 0.0])
    return images


@pytest.mark.parametrize("amount", [0.05, 0.3])
def test_brightness_is_in_hsv(amount):
    expected = by_pixel(colors(), lambda h, s, v: (h, s, min(v + amount, 1)))
    torch.testing.assert_close(brightness(colors(), SampleNoise(0, range(2)), amount), expected)


@pytest.mark.parametrize(("factor", "amount"), [(0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)])
def test_saturate_is_in_hsv(factor, amount):
    expected = by_pixel(colors(), lambda h, s, v: (h, min(s * factor + amount, 1), v))
    torch.testing.assert_close(saturate(colors(), SampleNoise(0, range(2)), factor, amount), expected)


def test_grey_images_become_brighter():
    images = torch.tensor([0.0, 0.5, 0.9]).reshape(1, 1, 1, 3)
    assert corrupt(images, "brightness").flatten().tolist() == pytest.approx([0.3, 0.8, 1.0])


def test_contrast_keeps_means():
    images = pictures()
    changed = corrupt(images, "contrast", severity=4)
    torch.testing.assert_close(changed.mean((2, 3)), images.mean((2, 3)))
    torch.testing.assert_close(changed.std((2, 3)), 0.3 * images.std((2, 3)))
