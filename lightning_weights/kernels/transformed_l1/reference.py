"""Specification of the transformed group energy in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def transformed_l1_reference(
    weight: Tensor, keep: Tensor, *, precision: float, l0: float, a: float, released: bool = False
) -> Tensor:
    """Compute the energy of every filter out of place and differentiably: the specification of the operator.

    With s = π·(½·precision·‖W‖² + λ0·n) for a filter of n weights, it is (a+1)s / (a+s), or (a+1)s / (a-s) as released.

    Args:
        weight: Weights of shape (filters, n).
        keep: Probabilities π of the filters to be kept, of shape (filters,).
        precision: Price of half a squared weight.
        l0: λ0, the price of a weight.
        a: Shape of the transformed ℓ1.
        released: Whether the denominator is that of the released code.

    Returns:
        Energies of shape (filters,), in fp32 or wider.

    Examples:
        >>> transformed_l1_reference(torch.ones(1, 4), torch.ones(1), precision=0.5, l0=0.0, a=1.0)
        tensor([1.])
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    expected = keep.to(wide.dtype) * (0.5 * precision * wide.square().sum(1) + l0 * weight.shape[1])
    return (a + 1.0) * expected / (a - expected if released else a + expected)
