"""Light and colour."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.functional.corruptions.registry import register_corruption
from lightning_weights.functional.corruptions.sample_noise import SampleNoise


@register_corruption("brightness", severities=(0.05, 0.1, 0.15, 0.2, 0.3), signals=True)
def brightness(images: Tensor, noise: SampleNoise, amount: float) -> Tensor:
    """Add to the value of HSV, which is the largest channel; hue and saturation stay, and nothing is random.

    Args:
        images: Images or signals in [0, 1].
        noise: Not used.
        amount: What is added.

    Examples:
        >>> brightness(torch.tensor([0.5, 0.25, 0.0]).reshape(1, 3, 1, 1), SampleNoise(0, [0]), 0.3).flatten()
        tensor([0.8000, 0.4000, 0.0000])
    """
    value = images.amax(1, keepdim=True)
    brighter = (value + amount).clamp(0, 1)
    return torch.where(value > 0, images * (brighter / value), brighter)


@register_corruption("contrast", severities=(0.75, 0.5, 0.4, 0.3, 0.15), signals=True)
def contrast(images: Tensor, noise: SampleNoise, factor: float) -> Tensor:
    """Bring every channel closer to its mean; nothing is random.

    Args:
        images: Images or signals in [0, 1].
        noise: Not used.
        factor: What is left of the distance to the mean.

    Examples:
        >>> contrast(torch.tensor([[[[0.0, 1.0]]]]), SampleNoise(0, [0]), 0.5)
        tensor([[[[0.2500, 0.7500]]]])
    """
    mean = images.flatten(2).mean(2).reshape(*images.shape[:2], *[1] * (images.ndim - 2))
    return (images - mean) * factor + mean


@register_corruption("saturate", severities=((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)))
def saturate(images: Tensor, noise: SampleNoise, factor: float, amount: float) -> Tensor:
    """Multiply the saturation of HSV and add to it; hue and value stay, and nothing is random.

    Grey has no hue. It takes red's, as the original does, which shows where ``amount`` is not 0.

    Args:
        images: Images in [0, 1] with 3 channels.
        noise: Not used.
        factor: What the saturation is multiplied with.
        amount: What is added to it.

    Raises:
        ValueError: If the images have 1 channel, which has no saturation.

    Examples:
        >>> saturate(torch.tensor([0.8, 0.4, 0.6]).reshape(1, 3, 1, 1), SampleNoise(0, [0]), 2.0, 0.0).flatten()
        tensor([0.8000, 0.0000, 0.4000])
    """
    if images.shape[1] != 3:
        raise ValueError(f"images have {images.shape[1]} channel, which has no saturation; 'saturate' is for 3")
    value = images.amax(1, keepdim=True)
    distance = value - images
    spread = distance.amax(1, keepdim=True)
    # value * (1 - saturation * share): how far a channel lies below the value, of the most that the hue allows
    red = images.new_tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1)
    share = torch.where(spread > 0, distance / spread, red)
    saturation = torch.where(value > 0, spread / value, value)
    return value * (1 - (saturation * factor + amount).clamp(0, 1) * share)
