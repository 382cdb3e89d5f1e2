"""Noise of the pulse update: a function of a seed and the index of an element."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_weights.kernels._mixing import GOLDEN_RATIO, mixed

ROUNDING, UPDATE, REWRITE = 0, 1, 2  # what noise is for


def noise_words(index: Tensor, seed: int, purpose: int) -> Tensor:
    """Return 32 random bits per element, in int64: a function of its index, the step's seed and the purpose."""
    return mixed(index * GOLDEN_RATIO + mixed(seed + purpose))


def uniform(index: Tensor, seed: int) -> Tensor:
    """Return fp32 noise in [0, 1), multiples of 2⁻²⁴, for rounding.

    Examples:
        >>> uniform(torch.arange(3), seed=1)
        tensor([0.3475, 0.6957, 0.4903])
    """
    return (noise_words(index, seed, ROUNDING) >> 8).to(torch.float32) * 2.0**-24


def normal_pair(index: Tensor, seed: int, purpose: int) -> tuple[Tensor, Tensor]:
    """Return two independent standard normal numbers per element, one for each device of a pair, in fp32."""
    words = noise_words(index, seed, purpose)
    radius = (-2.0 * (((words >> 16).to(torch.float32) + 0.5) * 2.0**-16).log()).sqrt()
    angle = (words & 0xFFFF).to(torch.float32) * (2.0 * math.pi * 2.0**-16)
    return radius * angle.cos(), radius * angle.sin()
