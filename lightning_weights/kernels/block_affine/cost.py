"""Tiles and memory traffic of the block-affine weight and its gradient."""

from __future__ import annotations

from typing import NamedTuple

from lightning_weights.kernels._op import Cost

LARGEST_BLOCK = 128  # r up to which tiles of weight and block and their product fit into registers
SMALLEST_TILE, MOST_ROWS = 16, 32  # what a matrix unit multiplies at least, and what registers hold beside the sums
PROGRAMS = 512  # that keep a GPU busy, if there are as many blocks


class Config(NamedTuple):
    """How a launch is cut up.

    Attributes:
        tile: Side of the adapter's tile, a power of two not below r.
        rows: Rows of a block of the weight that are multiplied at once, a divisor of the side.
        splits: Programs that share the blocks of the weight which one block of the grid belongs to.
        warps: Warps per program.
    """

    tile: int
    rows: int
    splits: int
    warps: int


def pick_config(blocks: tuple[int, int], grid: tuple[int, int], r: int, warp_size: int = 32) -> Config:
    """Choose tile, programs and warps.

    Args:
        blocks: Blocks of the weight along outputs and inputs.
        grid: Blocks of the adapter along both.
        r: Size of a block, up to 128.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        The configuration. Every thread has at least 16 bytes of the weight's tile in the narrowest data type, if r is
        above 16.

    Examples:
        >>> pick_config((64, 64), (64, 1), 64)
        Config(tile=64, rows=32, splits=8, warps=8)
    """
    tile = max(SMALLEST_TILE, 1 << (r - 1).bit_length())
    users = -(-blocks[0] // grid[0]) * -(-blocks[1] // grid[1])
    splits = min(users, max(1, PROGRAMS // (grid[0] * grid[1])))
    threads = max(32, min(16384 // warp_size, tile * tile // 16))  # AMD's have more registers each
    return Config(tile, min(tile, MOST_ROWS), splits, max(1, threads // warp_size))


def cost(
    out_features: int,
    in_features: int,
    r: int,
    grid: tuple[int, int],
    *,
    itemsize: int = 4,
    backward: bool = False,
) -> Cost:
    """Count what one call of the Triton kernel moves and computes.

    Args:
        out_features: Outputs of the layer.
        in_features: Inputs of the layer.
        r: Size of a block.
        grid: Blocks of the adapter along outputs and inputs.
        itemsize: Bytes per weight; the adapter's have 4.
        backward: Whether it is the gradient of the block, from that of the built weight.

    Returns:
        Bytes and operations: forward weight and blocks are read once and the built weight is written; backward weight
        and gradient are read once, and every program writes its part of the sum. Blocks that several programs read
        come from the cache after the first.

    Examples:
        >>> cost(4096, 4096, 64, (64, 1), itemsize=2).bytes_written
        33554432
    """
    size = out_features * in_features
    classes = grid[0] * grid[1]
    splits = pick_config((out_features // r, in_features // r), grid, r).splits
    if backward:
        return Cost(
            bytes_read=2 * size * itemsize, bytes_written=4 * classes * splits * r * r, flops=size * (2 * r + 1)
        )
    return Cost(
        bytes_read=size * itemsize + 4 * classes * r * r, bytes_written=size * itemsize, flops=size * (2 * r + 1)
    )


def cost_composition(out_features: int, in_features: int, r: int, *, itemsize: int = 4) -> Cost:
    """Count what building the weight from permuted blocks moves, with one block per block row.

    Args:
        out_features: Outputs of the layer.
        in_features: Inputs of the layer.
        r: Size of a block.
        itemsize: Bytes per element.

    Returns:
        Bytes and operations of: a copy of the weight, a permuted one for the product, the product, a sum with the
        block, a permuted copy back, and a sum with the weight.

    Examples:
        >>> cost_composition(4096, 4096, 64, itemsize=2).bytes_written
        201326592
    """
    size = out_features * in_features
    small = out_features * r * itemsize
    return Cost(bytes_read=7 * size * itemsize + 2 * small, bytes_written=6 * size * itemsize, flops=size * (2 * r + 2))
