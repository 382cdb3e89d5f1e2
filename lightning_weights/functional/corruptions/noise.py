"""Noise of cameras and cables."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.functional.corruptions.registry import register_corruption
from lightning_weights.functional.corruptions.sample_noise import SampleNoise


@register_corruption("gaussian_noise", severities=(0.04, 0.06, 0.08, 0.09, 0.10), signals=True)
def gaussian_noise(images: Tensor, noise: SampleNoise, sigma: float) -> Tensor:
    """Add normal noise.

    Args:
        images: Images or signals in [0, 1].
        noise: Where the random numbers come from.
        sigma: Standard deviation.

    Examples:
        >>> gaussian_noise(torch.zeros(1, 1, 2, 2), SampleNoise(0, [0]), 0.1).shape
        torch.Size([1, 1, 2, 2])
    """
    return images + sigma * noise.normal(*images.shape[1:])


@register_corruption("shot_noise", severities=(500, 250, 100, 75, 50), signals=True)
def shot_noise(images: Tensor, noise: SampleNoise, photons: float) -> Tensor:
    """Count photons: a Poisson number per value, with a mean of the value times ``photons``.

    Args:
        images: Images or signals in [0, 1].
        noise: Where the random numbers come from.
        photons: Mean number of photons at the value 1, above 0; fewer are noisier.

    Examples:
        >>> shot_noise(torch.zeros(1, 1, 1, 2), SampleNoise(0, [0]), 50)
        tensor([[[[0., 0.]]]])
    """
    return noise.poisson(images * photons) / photons


@register_corruption("impulse_noise", severities=(0.01, 0.02, 0.03, 0.05, 0.07), signals=True)
def impulse_noise(images: Tensor, noise: SampleNoise, amount: float) -> Tensor:
    """Replace values by 0 or 1, with the same chance: pepper and salt.

    Args:
        images: Images or signals in [0, 1].
        noise: Where the random numbers come from.
        amount: Chance that a value is replaced.

    Examples:
        >>> impulse_noise(torch.full((1, 1, 2, 2), 0.5), SampleNoise(0, [0]), 0.0).unique()
        tensor([0.5000])
    """
    hit = noise.uniform(*images.shape[1:]) < amount
    salt = noise.uniform(*images.shape[1:]) < 0.5
    return torch.where(hit, salt.to(images.dtype), images)


@register_corruption("speckle_noise", severities=(0.06, 0.1, 0.12, 0.16, 0.2), signals=True)
def speckle_noise(images: Tensor, noise: SampleNoise, sigma: float) -> Tensor:
    """Add normal noise in proportion to the value.

    Args:
        images: Images or signals in [0, 1].
        noise: Where the random numbers come from.
        sigma: Standard deviation at the value 1.

    Examples:
        >>> speckle_noise(torch.zeros(1, 1, 1, 2), SampleNoise(0, [0]), 0.2)
        tensor([[[[0., 0.]]]])
    """
    return images + sigma * images * noise.normal(*images.shape[1:])
