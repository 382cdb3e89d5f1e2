"""Fog, frost, snow, and what splashes on a lens."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.functional.corruptions.plasma import plasma
from lightning_weights.functional.corruptions.registry import register_corruption, relative_size
from lightning_weights.functional.corruptions.sample_noise import SampleNoise
from lightning_weights.functional.corruptions.taps import drag, enlarge, smooth

LUMINANCE = (0.299, 0.587, 0.114)
WATER, MUD = (175 / 255, 238 / 255, 238 / 255), (63 / 255, 42 / 255, 20 / 255)
OPAQUE = 0.8  # share of mud from which on it hides the image
ROUGHNESS, RIDGE, STREAK = 1.6, 3, (6.0, 4.0)  # of the texture of frost


def grey(images: Tensor) -> Tensor:
    """Return the luminance of images of 1 or 3 channels, shape (N, 1, H, W).

    Examples:
        >>> grey(torch.ones(1, 3, 1, 1)).item()
        1.0
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = (share * images[:, channel : channel + 1] for channel, share in enumerate(LUMINANCE))
    return red + green + blue


@register_corruption("fog", severities=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)))
def fog(images: Tensor, noise: SampleNoise, weight: float, decay: float) -> Tensor:
    """Add a cloud of plasma and scale down so that the brightest pixel cannot become brighter.

    Args:
        images: Images in [0, 1].
        noise: Where the random numbers come from.
        weight: Weight of the cloud.
        decay: How smooth it is; see ``plasma``.

    Examples:
        >>> fog(torch.zeros(1, 1, 8, 8), SampleNoise(0, [0]), 1.0, 2.0).unique()
        tensor([0.])
    """
    brightest = images.amax((1, 2, 3), keepdim=True)
    cloud = plasma(noise, images.shape[2], images.shape[3], decay)
    return (images + weight * cloud) * brightest / (brightest + weight)


@register_corruption("frost_texture", severities=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)))
def frost_texture(images: Tensor, noise: SampleNoise, weight: float, texture_weight: float) -> Tensor:
    """Blend with a computed texture of ice: ridges between clouds of plasma, and needles along a random direction.

    CIFAR-10-C's ``frost`` takes photographs of frost instead, with the same weights: numbers are not comparable.

    Args:
        images: Images in [0, 1].
        noise: Where the random numbers come from.
        weight: Weight of the image.
        texture_weight: Weight of the texture.

    Examples:
        >>> frost_texture(torch.ones(1, 1, 8, 8), SampleNoise(0, [0]), 1.0, 0.0).unique()
        tensor([1.])
    """
    factor, size = relative_size(images), images.shape[2:]
    ridges = (1 - (2 * plasma(noise, size[0], size[1], ROUGHNESS) - 1).abs()) ** RIDGE
    seeds = (noise.normal(1, *size) > 1).to(images.dtype)
    needles = drag(seeds, STREAK[0] * factor, STREAK[1] * factor, noise.uniform(low=-180.0, high=180.0))
    return weight * images + texture_weight * (ridges + 2 * needles).clamp(0, 1)


@register_corruption(
    "snow",
    severities=(
        (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
)
def snow(
    images: Tensor,
    noise: SampleNoise,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    weight: float,
) -> Tensor:
    """Let flakes fall: normal noise, enlarged and cut off, smeared downwards, over an image that is paler.

    Args:
        images: Images in [0, 1].
        noise: Where the random numbers come from.
        mean: Mean of the noise.
        deviation: Its standard deviation.
        zoom: How much it is enlarged.
        threshold: Where noise becomes a flake.
        radius: Half the length of a flake's smear in pixels of an image of 32.
        sigma: Standard deviation of the smear, likewise.
        weight: Weight of the image; the rest is that of the pale one.

    Examples:
        >>> snow(torch.ones(1, 1, 8, 8), SampleNoise(0, [0]), 0.1, 0.2, 1.0, 0.6, 8, 3, 0.95).shape
        torch.Size([1, 1, 8, 8])
    """
    factor = relative_size(images)
    flakes = enlarge(mean + deviation * noise.normal(1, *images.shape[2:]).to(images.dtype), zoom)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    flakes = drag(flakes, radius * factor, sigma * factor, noise.uniform(low=-135.0, high=-45.0))
    pale = weight * images + (1 - weight) * torch.maximum(images, grey(images) * 1.5 + 0.5)
    return pale + flakes + flakes.flip(2, 3)


@register_corruption(
    "spatter",
    severities=(
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1.0, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
)
def spatter(
    images: Tensor,
    noise: SampleNoise,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    weight: float,
    mud: float,
) -> Tensor:
    """Splash water or mud on the lens, where smoothed normal noise is high.

    Water brightens. CIFAR-10-C gives its drops a relief by means of edges; here they are as bright as the noise is
    high. Mud covers.

    Args:
        images: Images in [0, 1].
        noise: Where the random numbers come from.
        mean: Mean of the noise.
        deviation: Its standard deviation.
        sigma: Standard deviation of its blur in pixels of an image of 32.
        threshold: Where noise becomes a splash.
        weight: Weight of water; for mud the standard deviation of a second blur in pixels of an image of 32.
        mud: 0 for water, 1 for mud.

    Examples:
        >>> spatter(torch.ones(1, 1, 8, 8), SampleNoise(0, [0]), 0.6, 0.1, 0.7, 0.7, 0.5, 0).shape
        torch.Size([1, 1, 8, 8])
    """
    factor = relative_size(images)
    layer = smooth(mean + deviation * noise.normal(1, *images.shape[2:]).to(images.dtype), sigma * factor)
    color = images.new_tensor(MUD if mud else WATER).view(1, 3, 1, 1)
    color = grey(color) if images.shape[1] == 1 else color
    if mud:
        cover = smooth((layer > threshold).to(images.dtype), weight * factor)
        cover = torch.where(cover < OPAQUE, 0.0, cover)
        return images * (1 - cover) + color * cover
    drops = torch.where(layer < threshold, 0.0, layer).clamp(0, 1)
    highest = drops.amax((1, 2, 3), keepdim=True)
    return images + weight * color * drops / torch.where(highest > 0, highest, 1.0)
