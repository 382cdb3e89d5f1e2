"""Specification of the row norms in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_NORM = 1e-12  # stands for the norm of a row of zeros, by which others divide


def weight_norm_rows_reference(weight: Tensor, factor_i: Tensor, factor_j: Tensor, scale: float) -> Tensor:
    """Return ‖W + s·I·J‖ of every row by forming the sum: the specification of the operator.

    Args:
        weight: W, (m, n).
        factor_i: I, (m, r).
        factor_j: J, (r, n).
        scale: s.

    Returns:
        Norms of shape (m,), in fp32 or wider, not below 1e-12.

    Examples:
        >>> weight_norm_rows_reference(torch.tensor([[3.0, 2.0]]), torch.ones(1, 1), torch.tensor([[0.0, 2.0]]), 1.0)
        tensor([5.])
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    rows = weight.to(dtype) + scale * (factor_i.to(dtype) @ factor_j.to(dtype))
    return rows.square().sum(1).clamp_min(SMALLEST_NORM**2).sqrt()
