"""JPEG against Pillow's files, and what holds without it."""

import io

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from lightning_weights.functional.corruptions.jpeg import LUMINANCE, jpeg
from tests.functional.corruptions.test_registry import pictures


def by_pillow(levels, quality):
    """Return what comes out of Pillow's file; bytes of shape (C, H, W)."""
    image = pytest.importorskip("PIL.Image")
    array = levels.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    image.fromarray(array if array.shape[2] == 3 else array[..., 0]).save(file, "JPEG", quality=quality)
    found = np.array(image.open(file))
    return torch.from_numpy(found.reshape(array.shape)).permute(2, 0, 1).double()


@pytest.mark.parametrize("quality", [10, 40, 50, 80, 95])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (17, 23)])
def test_images_come_out_as_from_pillow(quality, channels, size):
    levels = (pictures(4, channels, *size) * 255).round().byte()
    found = jpeg(levels.double() / 255, quality) * 255
    expected = torch.stack([by_pillow(image, quality) for image in levels])
    # transforms in integers round now and then the other way; a coefficient that does is one step off
    assert (found - expected).abs().mean() < 1
    assert ((found - expected).abs() > 2).double().mean() < 0.1
    assert (found - levels).abs().mean() > 2 * (found - expected).abs().mean()


def test_results_are_bytes():
    out = jpeg(pictures(), 40) * 255
    torch.testing.assert_close(out, out.round(), atol=1e-4, rtol=0)
    assert out.min() >= 0
    assert out.max() <= 255


def test_a_grey_block_is_its_quantised_transform():
    levels = (pictures(1, 1, 8, 8)[0, 0].double() * 255).round()
    spectrum = torch.from_numpy(dctn(levels.numpy() - 128, norm="ortho"))
    steps = torch.tensor(LUMINANCE).double()  # quality 50: the tables as they are
    out = jpeg(levels[None, None] / 255, 50)[0, 0] * 255
    again = torch.from_numpy(dctn(out.numpy() - 128, norm="ortho"))
    assert (again - (spectrum / steps).round() * steps).abs().mean() < 0.5


def test_quality_100_is_close_and_1_is_not():
    images = pictures(1, 1)
    assert (jpeg(images, 100) - images).abs().max() < 2.5 / 255
    assert (jpeg(images, 1) - images).abs().max() > 30 / 255


@pytest.mark.parametrize("quality", [0, 101, 50.5])
def test_quality_is_checked(quality):
    with pytest.raises(ValueError, match="quality is"):
        jpeg(torch.zeros(1, 1, 8, 8), quality)
