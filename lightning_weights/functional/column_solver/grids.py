"""Grids of levels, in the layout of a layer's weight."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.kernels.compensate_columns import search_grid

__all__ = ["dequantize", "group_grids", "group_index", "round_to_grid", "search_grid"]


def group_index(columns: int, group_size: int) -> Tensor:
    """Return the group of every column, neighbours together; the last group may be shorter.

    Args:
        columns: Number of columns.
        group_size: Columns per group; -1: one group.

    Examples:
        >>> group_index(5, 2)
        tensor([0, 0, 1, 1, 2], dtype=torch.int32)
    """
    index = torch.arange(columns) // (columns if group_size == -1 else group_size)
    return index.to(torch.int32)


def group_grids(weight: Tensor, group_size: int, bits: int, grid: str, clip: bool) -> tuple[Tensor, Tensor]:
    """Find scales and zero points of all groups of neighbouring columns.

    Args:
        weight: (m, n).
        group_size: Columns per group; -1: one group.
        bits: Bits per weight.
        grid: ``asymmetric``, ``quarot`` or ``gptq``.
        clip: Whether to search for the best range.

    Returns:
        Scales and zero points, (m, groups) each.

    Examples:
        >>> scale, zero = group_grids(torch.tensor([[0.0, 3.0, -1.0, 2.0]]), 2, 2, "asymmetric", False)
        >>> scale, zero
        (tensor([[1., 1.]]), tensor([[-0., 1.]]))
    """
    size = weight.shape[1] if group_size == -1 else group_size
    found = [search_grid(part.T.contiguous(), bits, grid, clip) for part in weight.split(size, dim=1)]
    return torch.stack([scale for scale, _ in found], 1), torch.stack([zero for _, zero in found], 1)


def round_to_grid(weight: Tensor, scale: Tensor, zero: Tensor, g_idx: Tensor, bits: int) -> Tensor:
    """Return the code of the nearest level of every weight; ties go to the even one.

    Args:
        weight: (m, n).
        scale: (m, groups).
        zero: (m, groups).
        g_idx: Group of every column, (n,).
        bits: Bits per weight.

    Examples:
        >>> one, none = torch.ones(1, 1), torch.zeros(1, 1)
        >>> round_to_grid(torch.tensor([[0.4, 2.5, 9.0]]), one, none, torch.zeros(3, dtype=torch.int32), 3)
        tensor([[0, 2, 7]], dtype=torch.uint8)
    """
    groups = g_idx.long()
    s, z = scale[:, groups], zero[:, groups]
    return (weight.to(s.dtype).div(s).round_() + z).clamp_(0, 2**bits - 1).to(torch.uint8)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, g_idx: Tensor) -> Tensor:
    r"""Return the weights that codes stand for.

    $$w_{ij} = s_{i g_j} (c_{ij} - z_{i g_j})$$

    Args:
        codes: (m, n).
        scale: (m, groups).
        zero: (m, groups).
        g_idx: Group of every column, (n,).

    Returns:
        Weights of the scales' dtype.

    Examples:
        >>> codes, g_idx = torch.tensor([[0, 3]], dtype=torch.uint8), torch.tensor([0, 0], dtype=torch.int32)
        >>> dequantize(codes, torch.tensor([[0.5]]), torch.tensor([[1.0]]), g_idx)
        tensor([[-0.5000,  1.0000]])
    """
    groups = g_idx.long()
    return (codes.to(scale.dtype) - zero[:, groups]).mul_(scale[:, groups])
