"""Lenses out of focus, frosted glass, and cameras that move."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.functional.corruptions.registry import register_corruption, relative_size
from lightning_weights.functional.corruptions.sample_noise import SampleNoise
from lightning_weights.functional.corruptions.taps import disk, drag, enlarge, inside, smooth

ZOOM_STEP = 0.01


@register_corruption("gaussian_blur", severities=(0.4, 0.6, 0.7, 0.8, 1.0), signals=True)
def gaussian_blur(images: Tensor, noise: SampleNoise, sigma: float) -> Tensor:
    """Blur with a bell curve; nothing is random.

    Args:
        images: Images or signals in [0, 1].
        noise: Not used.
        sigma: Standard deviation in pixels of an image of 32.

    Examples:
        >>> gaussian_blur(torch.ones(1, 1, 32, 32), SampleNoise(0, [0]), 1.0).shape
        torch.Size([1, 1, 32, 32])
    """
    return smooth(images, sigma * relative_size(images))


@register_corruption("defocus_blur", severities=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)))
def defocus_blur(images: Tensor, noise: SampleNoise, radius: float, softness: float) -> Tensor:
    """Blur with a disk; nothing is random, and images are mirrored at their borders.

    Args:
        images: Images in [0, 1].
        noise: Not used.
        radius: Radius of the disk in pixels of an image of 32.
        softness: Standard deviation of a bell curve of three taps that softens the disk, likewise.

    Examples:
        >>> defocus_blur(torch.ones(1, 1, 32, 32), SampleNoise(0, [0]), 1.5, 0.1).shape
        torch.Size([1, 1, 32, 32])
    """
    factor = relative_size(images)
    kernel = disk(radius * factor, softness * factor)
    reach = len(kernel) // 2
    height, width = images.shape[2:]
    out = torch.zeros_like(images)
    for i, j in kernel.nonzero().tolist():
        rows = inside(torch.arange(height) + i - reach, height, "mirror").to(images.device)
        columns = inside(torch.arange(width) + j - reach, width, "mirror").to(images.device)
        out = out + float(kernel[i, j]) * images.index_select(2, rows).index_select(3, columns)
    return out


@register_corruption("glass_blur", severities=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)))
def glass_blur(images: Tensor, noise: SampleNoise, sigma: float, shift: float, rounds: float) -> Tensor:
    """Blur, exchange every pixel with a random one near by, from the lower right corner on, and blur again.

    Args:
        images: Images in [0, 1].
        noise: Where the random numbers come from.
        sigma: Standard deviation of the blur in pixels of an image of 32.
        shift: How far up and to the left a pixel may move at a time, likewise; it is rounded, and at least 1.
        rounds: How often every pixel is exchanged.

    Examples:
        >>> x = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
        >>> moved = glass_blur(x, SampleNoise(0, [0]), 0.0, 1, 1)
        >>> moved.flatten().sort().values.equal(x.flatten())
        True
    """
    factor = relative_size(images)
    reach = max(1, round(shift * factor))
    count, _, height, width = images.shape
    places = [(row, column) for row in range(height - reach, reach, -1) for column in range(width - reach, reach, -1)]
    x = smooth(images, sigma * factor)
    every = torch.arange(count, device=x.device)
    for _ in range(round(rounds)):
        moves = noise.integers(-reach, reach, 2, max(1, len(places)))
        for place, (row, column) in enumerate(places):
            other = every, slice(None), row + moves[:, 0, place], column + moves[:, 1, place]
            here = x[:, :, row, column].clone()
            x[:, :, row, column] = x[other]
            x[other] = here
    return smooth(x, sigma * factor)


@register_corruption("motion_blur", severities=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)))
def motion_blur(images: Tensor, noise: SampleNoise, radius: float, sigma: float) -> Tensor:
    """Smear along a random direction, up to 45 degrees off the rows.

    Args:
        images: Images in [0, 1].
        noise: Where the random numbers come from.
        radius: Half the length of the smear in pixels of an image of 32.
        sigma: Standard deviation of the half bell curve that it follows, likewise.

    Examples:
        >>> motion_blur(torch.ones(1, 1, 32, 32), SampleNoise(0, [0]), 6, 1).shape
        torch.Size([1, 1, 32, 32])
    """
    factor = relative_size(images)
    return drag(images, radius * factor, sigma * factor, noise.uniform(low=-45.0, high=45.0))


@register_corruption("zoom_blur", severities=(1.06, 1.11, 1.16, 1.21, 1.26))
def zoom_blur(images: Tensor, noise: SampleNoise, largest: float) -> Tensor:
    """Average an image with its enlargements about the middle, in steps of one percent; nothing is random.

    Args:
        images: Images in [0, 1].
        noise: Not used.
        largest: Largest factor, from 1.

    Examples:
        >>> zoom_blur(torch.ones(1, 1, 32, 32), SampleNoise(0, [0]), 1.06).shape
        torch.Size([1, 1, 32, 32])
    """
    steps = round((largest - 1) / ZOOM_STEP)
    # the factor 1 counts twice: the image itself, and its first enlargement
    out = 2 * images
    for step in range(1, steps + 1):
        out = out + enlarge(images, 1 + step * ZOOM_STEP)
    return out / (steps + 2)
