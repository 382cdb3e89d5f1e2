"""Tile sizes, reach and memory traffic of the projected Adam step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.kernels._op import Cost
from lightning_weights.kernels.projected_adam.blockwise import BLOCK, blocks

LARGEST_RANK = 32  # of the Triton kernel, which keeps projected gradient, moments and step of a tile in registers
RANKS_8BIT = (8, 16, 32)  # for which the tile of a program consists of whole blocks
STAGES = 2  # tiles under way at a time


class Tiles(NamedTuple):
    """What a program takes at once.

    Attributes:
        outer: Rows of what is projected from the right, columns of what is projected from the left.
        inner: The other side, which the projection shortens.
        rank: p rounded up to what a product takes.
        warps: Warps per program.
    """

    outer: int
    inner: int
    rank: int
    warps: int


def covers(projections: Sequence[Tensor], exp_avgs: Sequence[Tensor]) -> bool:
    """Whether the Triton kernel is written for the ranks of these projections.

    Args:
        projections: Projections of one side.
        exp_avgs: First moments, uint8 if they are codes.

    Examples:
        >>> covers([torch.eye(6, 2)], [torch.zeros(2, 9)]), covers([torch.eye(600, 200)], [torch.zeros(200, 9)])
        (True, False)
    """
    ranks = {min(projection.shape) for projection in projections}
    if exp_avgs[0].dtype == torch.uint8:
        return ranks <= set(RANKS_8BIT)
    return all(0 < rank <= LARGEST_RANK for rank in ranks)


def pick_config(rank: int, warp_size: int = 32, even: bool = True) -> Tiles:
    """Choose the tile that a program takes at once.

    Args:
        rank: p.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.
        even: Whether no masks are needed, which take registers.

    Returns:
        The tile, narrower with masks; 8-bit blocks never cross its borders.

    Examples:
        >>> pick_config(8), pick_config(20, even=False)
        (Tiles(outer=32, inner=64, rank=16, warps=4), Tiles(outer=32, inner=32, rank=32, warps=4))
    """
    padded = 16
    while padded < rank:
        padded *= 2
    return Tiles(32, 64 if even else 32, padded, 128 // warp_size)


def cost(
    rows: int, columns: int, rank: int, *, param_itemsize: int = 4, grad_itemsize: int = 4, state_bits: int = 32
) -> Cost:
    """Count what one step of the Triton kernel moves and computes for one matrix projected on its shorter side.

    Args:
        rows: a.
        columns: b.
        rank: p.
        param_itemsize: Bytes per weight.
        grad_itemsize: Bytes per gradient element.
        state_bits: 32, or 8 for codes with a maximum per block.

    Returns:
        Bytes and operations: gradient read once, weights read and written once, moments read and written once; the
        projection counts once since it stays in the L2 cache, and tables are left out.

    Examples:
        >>> moved = cost(4096, 4096, 64)
        >>> (moved.bytes_read + moved.bytes_written) / 4096**2
        12.3125
    """
    size, moments = rows * columns, max(rows, columns) * rank
    states = 2 * 4 * moments if state_bits == 32 else 2 * (moments + 4 * blocks(moments))
    return Cost(
        bytes_read=size * (grad_itemsize + param_itemsize) + states + 4 * rank * min(rows, columns),
        bytes_written=size * param_itemsize + states,
        flops=size * (4 * rank + 3) + 11 * moments,
    )


def cost_composition(rows: int, columns: int, rank: int) -> Cost:
    """Count what the usual composition moves and computes in fp32 for one matrix, as GaLore's code does.

    Args:
        rows: a.
        columns: b.
        rank: p.

    Returns:
        Bytes and operations: of the matrix' size the gradient is projected, the step projected back, scaled and
        subtracted; moments take seven passes.

    Examples:
        >>> composed, fused = cost_composition(4096, 4096, 64), cost(4096, 4096, 64)
        >>> (composed.bytes_read + composed.bytes_written) / (fused.bytes_read + fused.bytes_written) > 2
        True
    """
    size, moments, projection = 4 * rows * columns, 4 * max(rows, columns) * rank, 4 * rank * min(rows, columns)
    return Cost(
        bytes_read=size * (1 + 1 + 2) + moments * 11 + 2 * projection,
        bytes_written=size * (1 + 1 + 1) + moments * 8,
        flops=rows * columns * (4 * rank + 3) + 11 * max(rows, columns) * rank,
    )


def rows_per_block(rank: int) -> int:
    """Return how many rows of a tile share the largest value of a block.

    Args:
        rank: p, one of those that codes are written for.

    Examples:
        >>> rows_per_block(8), rows_per_block(32)
        (32, 8)
    """
    return BLOCK // rank
