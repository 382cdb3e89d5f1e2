"""Specification of the companding functions in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FUNCTIONS = ("arctan", "tanh", "softsign")
LIMITS = {"arctan": math.pi / 2, "tanh": 1.0, "softsign": 1.0}  # |w| stays below a times this


def compand_reference(latent: Tensor, a: Tensor, b: Tensor, function: str = "arctan") -> Tensor:
    """Compute ψ out of place and differentiably: the specification of the operator.

    With r = v / b it is a·arctan(r), a·tanh(r) or a·r / (1 + |r|).

    Args:
        latent: Latent weights v, of shape (rows, columns).
        a: Scales of the rows, of shape (rows,).
        b: Widths of the rows, of shape (rows,).
        function: ``arctan``, ``tanh`` or ``softsign``.

    Returns:
        Weights in fp32 or wider, of the latent ones' shape.

    Examples:
        >>> compand_reference(torch.ones(1, 1), torch.tensor([2.0]), torch.tensor([1.0]))
        tensor([[1.5708]])
    """
    wide = torch.promote_types(latent.dtype, torch.float32)
    ratio = latent.to(wide) / b.to(wide).unsqueeze(1)
    if function == "softsign":
        unit = ratio / (1.0 + ratio.abs())
    else:
        unit = torch.atan(ratio) if function == "arctan" else torch.tanh(ratio)
    return a.to(wide).unsqueeze(1) * unit
