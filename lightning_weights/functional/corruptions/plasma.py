"""Clouds of random plasma."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.functional.corruptions.sample_noise import SampleNoise


def plasma(noise: SampleNoise, height: int, width: int, decay: float) -> Tensor:
    """Return one cloud per sample by midpoint displacement (diamond-square) on a torus.

    Args:
        noise: Where the random numbers come from.
        height: Rows.
        width: Columns.
        decay: Displacements are divided by its square from one scale to the next finer one: small numbers give rough
            clouds.

    Returns:
        Float32 of shape (N, 1, height, width). Before it is cut to this size, which is then a power of two, every cloud
        goes from 0 to 1.

    Examples:
        >>> cloud = plasma(SampleNoise(0, [5]), 4, 4, decay=2.0)
        >>> cloud.shape, cloud.min().item(), cloud.max().item()
        (torch.Size([1, 1, 4, 4]), 0.0, 1.0)
    """
    size = 1 << max(1, (max(height, width) - 1).bit_length())
    step, reach = size, 1.0
    corners = torch.zeros(len(noise), 1, 1, device=noise.device)
    while step > 1:
        cells = size // step

        def displaced(four: Tensor, cells: int = cells, reach: float = reach) -> Tensor:
            return four / 4 + noise.uniform(cells, cells, low=-reach, high=reach)

        beside = corners.roll(-1, 2)
        middles = displaced(corners + beside + corners.roll(-1, 1) + beside.roll(-1, 1))
        tops = displaced(corners + beside + middles + middles.roll(1, 1))
        lefts = displaced(corners + corners.roll(-1, 1) + middles + middles.roll(1, 2))
        upper = torch.stack([corners, tops], dim=3).flatten(2)
        lower = torch.stack([lefts, middles], dim=3).flatten(2)
        corners = torch.stack([upper, lower], dim=2).flatten(1, 2)
        step, reach = step // 2, reach / decay**2
    low = corners.amin((1, 2), keepdim=True)
    cloud = (corners - low) / (corners.amax((1, 2), keepdim=True) - low)
    return cloud[:, None, :height, :width]
