"""Leaving out residual branches at random, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_path(x: Tensor, probability: float, training: bool) -> Tensor:
    r"""Set what a residual branch adds to some samples to zero, and make up for it in the others.

    $$\hat x_i = \frac{m_i}{1 - p} x_i, \qquad m_i \sim \mathrm{Bernoulli}(1 - p)$$

    Draws from torch's global generator of the tensor's device, in training only.

    Args:
        x: What a branch adds, shape (N, ...).
        probability: p, at least 0 and below 1.
        training: Whether anything is left out at all.

    Returns:
        A tensor of the same shape and type; ``x`` itself if nothing is left out.

    Source: Huang et al. 2016, arXiv:1603.09382.

    Examples:
        >>> drop_path(torch.ones(2, 3), 0.5, training=False).sum()
        tensor(6.)
        >>> sorted(set(drop_path(torch.ones(100, 3), 0.5, training=True).unique().tolist()))
        [0.0, 2.0]
    """
    if not training or probability == 0.0:
        return x
    kept = torch.empty((len(x), *(1,) * (x.ndim - 1)), dtype=x.dtype, device=x.device).bernoulli_(1.0 - probability)
    return x * (kept / (1.0 - probability))


def layer_probabilities(depth: int, largest: float) -> list[float]:
    """Return the probability of every layer: it grows in equal steps from 0 at the first to the last.

    Args:
        depth: Number of layers, at least 1.
        largest: Probability of the last one.

    Examples:
        >>> layer_probabilities(3, 0.1), layer_probabilities(1, 0.1)
        ([0.0, 0.05, 0.1], [0.0])
    """
    return [largest * layer / max(1, depth - 1) for layer in range(depth)]
