"""Specification of one block of column-by-column quantization in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.kernels.compensate_columns.grid_search import search_grid

OUTER = ("current", "quantized", "clamped", "leftover")


def search_block(
    weight: Tensor,
    scale: Tensor,
    zero: Tensor,
    groups: Tensor,
    *,
    bits: int,
    grid: str,
    clip: bool,
    search: int,
    start: int,
) -> None:
    """Find the grids of all groups that begin in a block, from the weights as they are at its start, in place.

    Args:
        weight: Columns from the block's first one on, (columns, m).
        scale: Of all groups, (groups, m).
        zero: Of all groups, (groups, m).
        groups: Group of every column of the block, (block,).
        bits: Bits per weight.
        grid: ``asymmetric``, ``quarot`` or ``gptq``.
        clip: Whether to search for the best range.
        search: Columns per group; 0: all grids are known.
        start: Number of the block's first column.

    Examples:
        >>> scale, zero = torch.zeros(2, 1, 1)
        >>> groups, settings = torch.zeros(1).int(), {"bits": 2, "grid": "asymmetric", "clip": False}
        >>> search_block(torch.tensor([[6.0]]), scale, zero, groups, search=4, start=0, **settings)
        >>> scale
        tensor([[2.]])
    """
    if search == 0:
        return
    for first in range(-start % search, len(groups), search):
        group = (start + first) // search
        scale[group], zero[group] = search_grid(weight[first : first + search], bits, grid, clip)


def compensate_columns_reference(
    weight: Tensor,
    original: Tensor | None,
    coefficients: Tensor,
    diagonal: Tensor,
    scale: Tensor,
    zero: Tensor,
    groups: Tensor,
    *,
    bits: int,
    grid: str,
    clip: bool,
    search: int,
    start: int,
    cae: float,
    blend: float,
    pull: float,
    pull_all: bool,
    outer: str,
    block_last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize the columns of one block: the specification of the operator, whose docstring has the equations.

    Every column step changes all later columns of the block, one after the other.

    Args:
        weight: Columns from the block's first one on, (at least block, m).
        original: w⁰ of the block's columns, (block, m), or None.
        coefficients: C, (block, 1 or 2, block).
        diagonal: What errors are divided by in the loss, (block,).
        scale: s of all groups, (groups, m), changed in place.
        zero: z of all groups, (groups, m), changed in place.
        groups: Group of every column of the block, (block,).
        bits: Bits per weight.
        grid: How grids are searched.
        clip: Whether the search tries narrower ranges.
        search: Columns per group to search grids for; 0: none.
        start: Number of the block's first column.
        cae: c.
        blend: b.
        pull: p.
        pull_all: Whether all later columns are pulled in every step.
        outer: Which value later blocks are told.
        block_last: Whether the range of ``clamped`` is that of the block's last column's group.

    Returns:
        Codes, what is pushed to later blocks, and the loss of every row.

    Examples:
        >>> one, none = torch.ones(1, 1), torch.zeros(1, 1)
        >>> tensors = torch.tensor([[0.4]]), None, none[None], torch.ones(1), one, none
        >>> codes, pushed, loss = compensate_columns_reference(
        ...     *tensors, torch.zeros(1).int(), bits=3, grid="gptq", clip=False, search=0, start=0, cae=0.0, blend=0.0,
        ...     pull=0.0, pull_all=False, outer="current", block_last=False,
        ... )
        >>> codes, pushed
        (tensor([[0]], dtype=torch.uint8), tensor([[[0.4000]]]))
    """
    search_block(weight, scale, zero, groups, bits=bits, grid=grid, clip=clip, search=search, start=start)
    block, pairs = len(groups), coefficients.shape[1]
    w1, index, levels = weight[:block].clone(), groups.tolist(), 2**bits - 1
    codes = torch.empty(w1.shape, dtype=torch.uint8, device=w1.device)
    pushed, loss = w1.new_empty(block, pairs, w1.shape[1]), w1.new_zeros(w1.shape[1])
    for q in range(block):
        w, w0 = w1[q], w1[q] if original is None else original[q]
        s, z = scale[index[q]], zero[index[q]]
        code = (torch.round(w / s) + z).clamp(0, levels)
        quantized = s * (code - z)
        error = (w - quantized) - cae * (w - w0)
        inner = [error, w + blend * (w0 - w)][:pairs]
        for j in range(q + 1, block):
            for pair in range(pairs):
                w1[j] += inner[pair] * coefficients[q, pair, j]
            if original is not None and pull and (pull_all or j == q + 1):
                w1[j] -= pull * (w1[j] - original[j])
        last = index[block - 1] if block_last else index[q]
        low, high = -zero[last] * scale[last], (levels - zero[last]) * scale[last]
        told = {"current": w, "quantized": quantized, "clamped": torch.clamp(w, low, high), "leftover": w}[outer]
        value = w - error if outer == "leftover" else told + blend * (w0 - told)
        pushed[q] = torch.stack([(w - quantized) - cae * (told - w0), value][:pairs])
        codes[q] = code.to(torch.uint8)
        loss += 0.5 * (error / diagonal[q]) ** 2
    return codes, pushed, loss
