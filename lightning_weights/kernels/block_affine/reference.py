"""Specification of the block-affine weight in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def block_affine_reference(weight: Tensor, block: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Compute the block-affine weight block by block and differentiably: the specification of the operator.

    The r×r block in row a and column b of the result is W_ab (I + B) + B, with B of row a mod g_o and column b mod g_i
    of the grid.

    Args:
        weight: W of shape (out, in).
        block: B of shape (g_o, g_i, r, r); r divides both sizes of the weight.
        dtype: Data type of the result, after arithmetic in fp32 or wider. ``None``: that of the weight.

    Returns:
        W' of shape (out, in).

    Examples:
        >>> block_affine_reference(torch.ones(2, 4), torch.full((1, 1, 2, 2), 0.5))
        tensor([[2.5000, 2.5000, 2.5000, 2.5000],
                [2.5000, 2.5000, 2.5000, 2.5000]])
    """
    r = block.shape[-1]
    wide = torch.promote_types(torch.promote_types(weight.dtype, block.dtype), torch.float32)
    rows = [a % block.shape[0] for a in range(weight.shape[0] // r)]
    columns = [b % block.shape[1] for b in range(weight.shape[1] // r)]
    tiled = block.to(wide)[rows][:, columns]
    tiles = weight.to(wide).reshape(len(rows), r, len(columns), r).transpose(1, 2)
    built = tiles @ (torch.eye(r, dtype=wide, device=block.device) + tiled) + tiled
    return built.transpose(1, 2).reshape(weight.shape).to(weight.dtype if dtype is None else dtype)
