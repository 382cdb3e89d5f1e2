"""What storing, scaling and bending do to images."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.functional.corruptions.jpeg import jpeg
from lightning_weights.functional.corruptions.registry import register_corruption, relative_size
from lightning_weights.functional.corruptions.sample_noise import SampleNoise
from lightning_weights.functional.corruptions.taps import interpolate, smooth, weigh_taps


@register_corruption("jpeg_compression", severities=(80, 65, 58, 50, 40))
def jpeg_compression(images: Tensor, noise: SampleNoise, quality: float) -> Tensor:
    """Store as JPEG and read again; nothing is random. Blocks have 8 pixels, whatever the size of the image.

    Args:
        images: Images in [0, 1].
        noise: Not used.
        quality: Quality from 1 to 100.

    Examples:
        >>> jpeg_compression(torch.ones(1, 1, 8, 8), SampleNoise(0, [0]), 40).unique()
        tensor([1.])
    """
    return jpeg(images, round(quality))


@register_corruption("pixelate", severities=(0.95, 0.9, 0.85, 0.75, 0.65), signals=True)
def pixelate(images: Tensor, noise: SampleNoise, factor: float) -> Tensor:
    """Scale down by averaging and up again by repeating; nothing is random.

    Args:
        images: Images or signals in [0, 1].
        noise: Not used.
        factor: Size of the small image, as a share; it has a whole number of pixels, rounded down, at least 1.

    Examples:
        >>> pixelate(torch.tensor([[[0.0, 1.0, 1.0, 1.0]]]), SampleNoise(0, [0]), 0.5)
        tensor([[[0.5000, 0.5000, 1.0000, 1.0000]]])
    """
    for dim in range(2, images.ndim):
        size = images.shape[dim]
        small = max(1, int(size * factor))
        images = weigh_taps(images, dim, *_box(size, small))
        images = weigh_taps(images, dim, *_box(small, size))
    return images


def _box(size: int, new_size: int) -> tuple[Tensor, Tensor]:
    """Return which pixels, with which weights, lie in the box of every new pixel: those whose centres do."""
    widest = max(size, new_size)
    new, taps = torch.arange(new_size)[:, None], widest // new_size + 2
    places = ((2 * new + 1) * size - widest) // (2 * new_size) + torch.arange(taps)
    # twice the distance between the two centres, in whole numbers: many centres lie exactly on an edge
    distance = (2 * places + 1) * new_size - (2 * new + 1) * size
    inner = ((distance > -widest) & (distance <= widest) & (places >= 0) & (places < size)).double()
    return places.clamp(0, size - 1), inner / inner.sum(1, keepdim=True)


@register_corruption(
    "elastic_transform",
    severities=((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
)
def elastic_transform(images: Tensor, noise: SampleNoise, amplitude: float, sigma: float, shift: float) -> Tensor:
    """Move three corners of a square at random, and bend along random, smoothed displacements.

    Args:
        images: Images in [0, 1].
        noise: Where the random numbers come from.
        amplitude: Displacements before they are smoothed, in pixels of an image of 32.
        sigma: Standard deviation of the smoothing, likewise.
        shift: Most that a corner moves along each axis, likewise.

    Examples:
        >>> x = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
        >>> elastic_transform(x, SampleNoise(0, [0]), 0.0, 0.0, 0.0).sub(x).abs().max() < 1e-6
        tensor(True)
    """
    factor = relative_size(images)
    height, width = images.shape[2:]
    rows, columns = _moved(noise, height, width, shift * factor)
    moved = interpolate(images, rows.to(images.device), columns.to(images.device), "mirror")
    bends = noise.uniform(2, height, width, low=-1.0, high=1.0)
    bends = smooth(bends, sigma * factor, truncate=3.0, border="symmetric") * (amplitude * factor)
    rows = torch.arange(height, device=images.device)[:, None] + bends[:, 0]
    columns = torch.arange(width, device=images.device) + bends[:, 1]
    return interpolate(moved, rows, columns, "symmetric")


def _moved(noise: SampleNoise, height: int, width: int, shift: float) -> tuple[Tensor, Tensor]:
    """Return where to read every pixel from, when three corners of a square in the middle are moved."""
    side = max(1, min(height, width) // 3)
    middle = torch.tensor([width // 2, height // 2], dtype=torch.float64)
    corners = middle + side * torch.tensor([[1, 1], [1, -1], [-1, -1]], dtype=torch.float64)
    offsets = noise.uniform(3, 2, low=-shift, high=shift).cpu().double()
    ones = torch.ones(len(offsets), 3, 1, dtype=torch.float64)
    back = torch.linalg.solve(torch.cat([corners + offsets, ones], dim=2), corners.expand_as(offsets))
    y, x = torch.arange(height).double()[:, None], torch.arange(width).double()
    across, down, constant = back[:, :, :, None, None].unbind(1)
    columns, rows = (across * x + down * y + constant).unbind(1)
    return rows, columns
