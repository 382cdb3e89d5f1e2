"""Checks of operands, before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError

DTYPES = (torch.float32, torch.float64)


def check_operands(center: Tensor, radius: Tensor, weight: Tensor, **vectors: Tensor | None) -> None:
    """Check shapes and dtypes of an interval, a weight matrix and vectors with one number per output.

    Args:
        center: Centres (..., in).
        radius: Half-widths (..., in).
        weight: W (out, in).
        **vectors: Bias, scale and shift by name; None where absent.

    Raises:
        ValueError: If something does not fit.
        ShardedParameterError: If an operand is sharded.
    """
    operands = {"center": center, "radius": radius, "weight": weight}
    operands |= {name: vector for name, vector in vectors.items() if vector is not None}
    if any(hasattr(operand, "placements") for operand in operands.values()):
        raise ShardedParameterError(
            "intervals need whole weights, but an operand is sharded: propagate inside the unit that FSDP gathers, or "
            "pass full_tensor()"
        )
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; allowed is (out, in)")
    if center.shape != radius.shape or center.dim() == 0 or center.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"center has shape {tuple(center.shape)} and radius {tuple(radius.shape)}; allowed is "
            f"(..., {weight.shape[1]}) for both, as weight has shape {tuple(weight.shape)}"
        )
    for name in operands.keys() - {"center", "radius", "weight"}:
        if operands[name].shape != weight.shape[:1]:
            raise ValueError(f"{name} has shape {tuple(operands[name].shape)}; allowed is ({weight.shape[0]},)")
    if (vectors.get("scale") is None) != (vectors.get("shift") is None):
        raise ValueError("scale and shift belong together: pass both, or neither")
    dtypes = {name: operand.dtype for name, operand in operands.items()}
    if len(set(dtypes.values())) > 1 or center.dtype not in DTYPES:
        raise ValueError(
            f"dtypes are {', '.join(f'{name} {dtype}' for name, dtype in dtypes.items())}; allowed is float32 for all, "
            f"or float64 for all: bounds in half precision would certify what does not hold. Convert with .float()"
        )
