"""Rows per program and memory traffic of a block of columns."""

from __future__ import annotations

from typing import NamedTuple

from lightning_weights.kernels._op import Cost

ROWS = 8  # of a program: 32 bytes of a column, the least that memory moves
ALIGNED_ROWS = 16  # a multiple of them fills all programs, and starts every column at a vector's boundary
HELD = 32  # weights in the registers of a thread
LONGEST_BLOCK, SHORTEST = 1024, 16  # columns
LONGEST_GROUP = 64  # columns; what is longer is read again from the cache with every range that is tried
CLIP_STEPS, CLIP_FLOPS, STEP_FLOPS = 80, 8, 10


class Tiles(NamedTuple):
    """What a program holds.

    Attributes:
        block: Columns of the block, rounded up to a power of two.
        group: Columns of a group that are searched at once.
        warps: Warps per program.
    """

    block: int
    group: int
    warps: int


def pick_config(block: int, search: int = 0, warp_size: int = 32, *, pull_all: bool = False) -> Tiles:
    """Choose the tiles of a program, which takes 8 rows of the layer through all columns of a block.

    The columns are one after the other, so that rows are all there is to spread, and the fewest of them give the most
    programs. A usual block fits into one warp, which finds a column's weights by shuffles: nobody waits at barriers.

    Args:
        block: Columns of the block.
        search: Columns per group whose grids are searched; 0: none are.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.
        pull_all: Whether the original weights of the whole block are held, too.

    Returns:
        Tiles and warps per program.

    Examples:
        >>> pick_config(128, search=128), pick_config(500)
        (Tiles(block=128, group=64, warps=1), Tiles(block=512, group=16, warps=4))
    """
    columns, group = SHORTEST, SHORTEST
    while columns < block:
        columns *= 2
    while group < min(search, LONGEST_GROUP):
        group *= 2
    return Tiles(columns, group, max(1, (1 + pull_all) * columns * ROWS // (HELD * warp_size)))


def cost(block: int, rows: int, *, pairs: int = 1, drifts: bool = False, search: int = 0, clip: bool = False) -> Cost:
    """Count what one launch for one block moves and computes in fp32.

    Args:
        block: Columns of the block.
        rows: m.
        pairs: 2 if values are pushed beside errors.
        drifts: Whether the original weights are read.
        search: Columns per group whose grids are searched, the first of which begins with the block; 0: none are.
        clip: Whether the search tries narrower ranges.

    Returns:
        Bytes and operations: weights and original ones are read once, and once more for the search; every program
        reads the coefficients above the diagonal, which the cache serves, and the grid of every column.

    Examples:
        >>> cost(128, 4096).bytes_written / (128 * 4096)  # 1 for the code, 4 for the error, the rest for the loss
        5.03125
    """
    programs, groups = -(-rows // ROWS), -(-block // search) if search else 0
    tile, table, searched = block * rows, pairs * block * (block - 1) // 2, groups * search * rows
    read = 4 * (tile * (1 + drifts) + 2 * tile + searched + programs * (table + 2 * block))
    written = tile * (1 + 4 * pairs) + 4 * rows * (1 + 2 * groups)
    groups_flops = searched * (2 + clip * CLIP_STEPS * CLIP_FLOPS)
    return Cost(read, written, tile * (STEP_FLOPS + pairs * (block - 1)) + groups_flops)


def cost_column_loop(block: int, rows: int, *, pairs: int = 1, drifts: bool = False) -> Cost:
    """Count what a loop moves that changes all later columns of the block in every column step.

    Args:
        block: Columns of the block.
        rows: m.
        pairs: 2 if values are pushed beside errors.
        drifts: Whether errors are corrected by the drift.

    Returns:
        Bytes and operations: an outer product is written, and read to change half a block on average, per column and
        pair; some ten operations work on the column itself.

    Examples:
        >>> round(cost_column_loop(128, 4096).bytes_read / cost(128, 4096).bytes_read)
        12
    """
    later = block * (block - 1) // 2 * rows
    own = block * rows
    read = 4 * (2 * pairs * later + own * (10 + 2 * drifts))
    written = 4 * (2 * pairs * later + own * (8 + drifts))
    return Cost(read, written, 2 * pairs * later + STEP_FLOPS * own)
