"""The row norms and their gradients without Triton: products that never form the sum of weight and factors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_weights.kernels.weight_norm_rows.reference import SMALLEST_NORM

CHUNK = 1 << 22  # weights of a narrow dtype that exist in a wide one at the same time


def norms(
    weight: Tensor, factor_i: Tensor, factor_j: Tensor, weight_norm_sq: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the norms, and W·Jᵀ for the backward pass; the factors are wide, the weight of any dtype.

    ‖W + s·I·J‖² = ‖W‖² + 2s·⟨I, W·Jᵀ⟩ + s²·⟨I·(J·Jᵀ), I⟩ for every row.
    """
    chunks = [
        (rows @ factor_j.T, None if weight_norm_sq is not None else squared_norms(rows))
        for _, rows in _wide_chunks(weight, factor_i.dtype)
    ]
    product = torch.cat([part for part, _ in chunks])
    square = (
        weight_norm_sq if weight_norm_sq is not None else torch.cat([part for _, part in chunks if part is not None])
    )
    inner = torch.addmm(product, factor_i, factor_j @ factor_j.T, beta=2.0, alpha=scale)
    square = torch.add(square, (inner * factor_i).sum(1), alpha=scale)
    return square.clamp_(min=SMALLEST_NORM**2).sqrt_(), product


def squared_norms(rows: Tensor) -> Tensor:
    """Return ‖W‖² of every row."""
    squares: Tensor = torch.linalg.vector_norm(rows, dim=1).square_()
    return squares


def gradients(
    weight: Tensor,
    factor_i: Tensor,
    factor_j: Tensor,
    product: Tensor,
    norm: Tensor,
    upstream: Tensor,
    scale: float,
    of_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of weight (empty unless asked for) and factors; only the weight's has its size."""
    # a row at the floor does not move its norm
    slope = torch.where(norm > SMALLEST_NORM, upstream / norm, 0.0).unsqueeze(1)
    gram = factor_j @ factor_j.T
    grad_i = (scale * slope) * torch.addmm(product, factor_i, gram, alpha=scale)
    weighted = slope * factor_i
    grad_j = scale * scale * ((weighted.T @ factor_i) @ factor_j)
    for place, rows in _wide_chunks(weight, factor_i.dtype):
        grad_j.addmm_(weighted[place].T, rows, alpha=scale)
    if not of_weight:
        return weight.new_empty(0), grad_i, grad_j
    grad_weight = torch.addmm(weight.to(factor_i.dtype), factor_i, factor_j, alpha=scale).mul_(slope)
    return grad_weight.to(weight.dtype), grad_i, grad_j


def _wide_chunks(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of a weight in a wide dtype: all at once if they have it already, else few at a time."""
    count = len(weight) if weight.dtype == dtype else max(1, CHUNK // max(1, weight.shape[1]))
    for start in range(0, max(1, len(weight)), max(1, count)):
        place = slice(start, start + count)
        yield place, weight[place].to(dtype)
