"""Tile sizes and memory traffic of the row norms."""

from __future__ import annotations

from typing import NamedTuple

from lightning_weights.kernels._op import Cost

LARGEST_RANK = 64  # of the Triton kernel, which keeps a tile's products with all of J in registers
STAGES = 3  # tiles under way at a time


class Tiles(NamedTuple):
    """What a program takes at once.

    Attributes:
        rows: Rows of the weight.
        columns: Columns of the weight.
        rank: r rounded up to what a product takes.
        warps: Warps per program.
    """

    rows: int
    columns: int
    rank: int
    warps: int


def pick_config(rows: int, columns: int, rank: int, warp_size: int = 32) -> tuple[Tiles, bool]:
    """Choose the tile of the weight that a program takes at once.

    Args:
        rows: m.
        columns: n.
        rank: r.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        The tile, narrower for large ranks and where masks take registers, and whether masks are needless.

    Examples:
        >>> pick_config(4096, 4096, 16), pick_config(10, 4096, 100)[1]
        ((Tiles(rows=32, columns=64, rank=16, warps=4), True), False)
    """
    padded = 16
    while padded < rank:
        padded *= 2
    tiles = Tiles(32 if padded < 64 else 16, min(64, 2048 // padded), padded, 128 // warp_size)
    if rows % tiles.rows == columns % tiles.columns == 0 and rank == padded:
        return tiles, True
    return tiles._replace(columns=32), False


def cost(rows: int, columns: int, rank: int, *, itemsize: int = 4, norms_known: bool = True) -> Cost:
    """Count what one call of the Triton kernel moves and computes.

    Args:
        rows: m.
        columns: n.
        rank: r.
        itemsize: Bytes per weight; factors and results have 4.
        norms_known: Whether the norms of the weight's rows are given.

    Returns:
        Bytes and operations: the weight is read once; J, read by every program, counts once since it stays in the L2
        cache. The products I·J·Jᵀ, of size m × r, come from a library: here they are only read.

    Examples:
        >>> cost(2048, 2048, 8, itemsize=2).bytes_read
        8593408
    """
    return Cost(
        bytes_read=rows * columns * itemsize + 4 * (rank * columns + 2 * rows * rank + norms_known * rows),
        bytes_written=4 * (rows + rows * rank),
        flops=rows * columns * (2 * rank + (0 if norms_known else 2)) + rows * (5 * rank + 3),
    )


def cost_composition(rows: int, columns: int, rank: int, *, itemsize: int = 4) -> Cost:
    """Count what forming the update for the norm moves and computes, as the reference does, in fp32 inside.

    Args:
        rows: m.
        columns: n.
        rank: r.
        itemsize: Bytes per weight.

    Returns:
        Bytes and operations for tensors of the weight's size: the product is written, scaled, added to the weight,
        squared and summed.

    Examples:
        >>> composed, fused = cost_composition(2048, 2048, 8), cost(2048, 2048, 8)
        >>> composed.bytes_read + composed.bytes_written > 7 * (fused.bytes_read + fused.bytes_written)
        True
    """
    size = 4 * rows * columns
    return Cost(
        bytes_read=rows * columns * itemsize + 4 * size + 4 * rank * (rows + columns),
        bytes_written=4 * size + 4 * rows,
        flops=rows * columns * (2 * rank + 4),
    )
