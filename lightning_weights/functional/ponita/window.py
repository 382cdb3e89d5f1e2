"""A smooth end of a neighbourhood."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.errors import check_number


def polynomial_cutoff(distances: Tensor, radius: float, power: int = 6) -> Tensor:
    r"""Compute a window that is one at the centre, zero from the radius on, and twice differentiable there.

    $$w(u) = 1 - \tfrac{(p+1)(p+2)}{2} u^p + p (p+2) u^{p+1} - \tfrac{p (p+1)}{2} u^{p+2}, \quad u = |r| / R < 1$$

    Args:
        distances: \|r\| of any shape.
        radius: R > 0.
        power: p, at least 2.

    Returns:
        w, of the same shape.

    Raises:
        ValueError: If the radius is not positive or the power too small.

    Source: the envelope of Gasteiger et al. 2020, arXiv:2003.03123, as in Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> polynomial_cutoff(torch.tensor([0.0, 0.5, 1.0, 2.0]), radius=1.0)
        tensor([1.0000, 0.8555, 0.0000, 0.0000])
    """
    check_number("radius", radius, low=0.0, low_allowed=False)
    check_number("power", power, low=2, whole=True)
    p = power
    u = distances / radius
    drop = u**p * ((p + 1) * (p + 2) / 2 - u * (p * (p + 2) - u * (p * (p + 1) / 2)))
    return torch.where(u < 1, 1 - drop, 0.0)
