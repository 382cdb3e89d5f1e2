"""Random numbers of which every sample of a batch has a stream of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


class SampleNoise:
    """Draw random numbers for a batch: those of a sample depend on its index and a seed, on nothing else.

    Every draw goes on where the one before it stopped. Numbers are drawn on the CPU, so that all devices see the same,
    and nothing draws from the global generators.

    Args:
        seed: Seed; samples of other seeds have other streams.
        indices: Index of every sample, a whole number of up to 63 bits.
        device: Where the numbers are wanted.

    Examples:
        >>> together = SampleNoise(seed=0, indices=[7, 3]).uniform(2)
        >>> torch.equal(together[1:], SampleNoise(seed=0, indices=[3]).uniform(2))
        True
    """

    def __init__(self, seed: int, indices: Iterable[int], device: torch.device | str = "cpu") -> None:
        self.device = device
        self._generators = [torch.Generator("cpu").manual_seed(_stream(seed, int(index))) for index in indices]

    def __len__(self) -> int:
        return len(self._generators)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return numbers between two ends, float32 of shape (N, *shape)."""
        return low + (high - low) * self._stacked([torch.rand(shape, generator=own) for own in self._generators])

    def normal(self, *shape: int) -> Tensor:
        """Return normal numbers, float32 of shape (N, *shape)."""
        return self._stacked([torch.randn(shape, generator=own) for own in self._generators])

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Return whole numbers from ``low`` to ``high - 1``, int64 of shape (N, *shape)."""
        return self._stacked([torch.randint(low, high, shape, generator=own) for own in self._generators])

    def poisson(self, rates: Tensor) -> Tensor:
        """Return a Poisson number for every rate, of the shape and type of ``rates``, (N, ...)."""
        pairs = zip(rates.cpu(), self._generators, strict=True)
        return self._stacked([torch.poisson(rate, generator=own) for rate, own in pairs])

    def _stacked(self, numbers: list[Tensor]) -> Tensor:
        return torch.stack(numbers).to(self.device)


def _stream(seed: int, index: int) -> int:
    """Return a seed in which those of neighbouring samples and of neighbouring seeds have nothing in common."""
    digest = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
