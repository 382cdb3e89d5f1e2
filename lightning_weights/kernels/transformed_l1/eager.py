"""The transformed group energy and its gradient without Triton."""

from __future__ import annotations

import torch
from torch import Tensor


def energies(
    weight: Tensor, keep: Tensor, precision: float, l0: float, a: float, released: bool
) -> tuple[Tensor, Tensor]:
    """Return energies and squared norms of the rows, reading the weights once and making no tensor of their size."""
    squares = torch.linalg.vector_norm(weight, dim=1, dtype=keep.dtype).square_()
    expected = keep * (0.5 * precision * squares + l0 * weight.shape[1])
    return (a + 1.0) * expected / (a - expected if released else a + expected), squares


def gradients(
    weight: Tensor,
    keep: Tensor,
    squares: Tensor,
    upstream: Tensor,
    precision: float,
    l0: float,
    a: float,
    released: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients to weights and probabilities; the former is one product with a number per row."""
    price = 0.5 * precision * squares + l0 * weight.shape[1]
    expected = keep * price
    slope = upstream * ((a + 1.0) * a) / (a - expected if released else a + expected).square()
    return (weight * (slope * keep * precision).unsqueeze(1)).to(weight.dtype), slope * price
