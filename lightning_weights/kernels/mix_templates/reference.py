"""Specification of weights that are mixed from templates, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mix_templates_reference(
    templates: Sequence[Tensor], coefficients: Tensor, sets: Sequence[int], columns: int = 1
) -> Tensor:
    """Compute a weight of blocks out of place and differentiably: the specification of the operator.

    Args:
        templates: One or two sets of K templates, each set of shape (K, o, i, ...).
        coefficients: A row of K factors for every block, of shape (blocks, K).
        sets: Which set each block is mixed from; blocks come in reading order.
        columns: Blocks beside each other.

    Returns:
        The weight in fp32 or wider, of shape (o · blocks / columns, i · columns, ...).

    Examples:
        >>> mix_templates_reference([torch.ones(2, 1, 1)], torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (0, 0), columns=2)
        tensor([[3., 7.]])
    """
    wide = torch.promote_types(templates[0].dtype, torch.float32)
    parts = [part.to(wide) for part in templates]
    factors = coefficients.to(wide).view(*coefficients.shape, *(1 for _ in parts[0].shape[1:]))
    blocks = [(row * parts[which]).sum(0) for row, which in zip(factors, sets, strict=True)]
    rows = [torch.cat(blocks[start : start + columns], 1) for start in range(0, len(blocks), columns)]
    return torch.cat(rows)
