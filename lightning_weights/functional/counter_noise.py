"""Uniform noise as a function of a seed and a counter, equal on every device and every process."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW_32_BITS = 0xFFFFFFFF


def _scramble(x: Tensor) -> Tensor:
    """Hash 32-bit integers, held in int64; both multipliers are below 2**31, so that no product overflows."""
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _LOW_32_BITS
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _LOW_32_BITS
    return x ^ (x >> 15)


def counter_noise(seed: Tensor, draw: Tensor, size: int) -> Tensor:
    """Return uniform noise that is a pure function of its arguments, like that of counter-based generators.

    Unlike a ``torch.Generator``, seed and counter can be buffers: checkpoints keep them, DistributedDataParallel makes
    them equal on all processes, and ``torch.compile`` traces the few integer operations.

    Args:
        seed: int64 scalar tensor; streams of different seeds are independent.
        draw: int64 scalar tensor: how many draws came before.
        size: How many numbers, fewer than 2**32.

    Returns:
        float32 of shape (size,), in [0, 1].

    Examples:
        >>> seed, draw = torch.tensor(7), torch.tensor(0)
        >>> torch.equal(counter_noise(seed, draw, 5)[:3], counter_noise(seed, draw, 3))
        True
        >>> torch.equal(counter_noise(seed, draw, 3), counter_noise(seed, draw + 1, 3))
        False
    """
    key = _scramble((_scramble(seed & _LOW_32_BITS) + draw) & _LOW_32_BITS)
    index = torch.arange(size, dtype=torch.int64, device=seed.device)
    bits = _scramble((_scramble(index) + key) & _LOW_32_BITS)
    return (bits.to(torch.float32) + 0.5) / 2.0**32
