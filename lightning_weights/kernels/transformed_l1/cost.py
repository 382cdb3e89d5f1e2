"""Block size and memory traffic of the transformed group energy."""

from __future__ import annotations

from lightning_weights.kernels._op import Cost

MOST_WARPS = 8
LONGEST_BLOCK = 8192  # elements: 32 registers per thread


def pick_config(columns: int, itemsize: int, warp_size: int = 32) -> tuple[int, int]:
    """Choose how many elements of a row a program takes at once, and its warps.

    That is the whole row if it has at most 8192 elements, so that all its loads are under way together; else rounds of
    one 128-bit access per thread, which the compiler unrolls. Every thread gets 16 bytes or a multiple of it.

    Args:
        columns: Elements per row.
        itemsize: Bytes per weight.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        Elements per round, a power of two, and warps per program.

    Examples:
        >>> pick_config(27, 4), pick_config(576, 4), pick_config(5760, 2)
        ((128, 1), (1024, 8), (8192, 8))
    """
    per_warp = warp_size * (16 // itemsize)
    if columns > LONGEST_BLOCK:
        return MOST_WARPS * per_warp, MOST_WARPS
    block = per_warp
    while block < columns:
        block *= 2
    return block, min(MOST_WARPS, block // per_warp)


def cost(rows: int, columns: int, *, itemsize: int = 4, backward: bool = False) -> Cost:
    """Count what one call of the Triton kernel moves and computes.

    Args:
        rows: Number of filters.
        columns: Weights per filter.
        itemsize: Bytes per weight; numbers per row have 4.
        backward: Whether it is the gradient.

    Returns:
        Bytes and operations: forward the weights are read once, backward read once and their gradient written once.

    Examples:
        >>> cost(640, 5760).bytes_read
        14748160
    """
    weights = rows * columns * itemsize
    if backward:
        return Cost(bytes_read=weights + 3 * 4 * rows, bytes_written=weights + 4 * rows, flops=rows * (columns + 13))
    return Cost(bytes_read=weights + 4 * rows, bytes_written=2 * 4 * rows, flops=rows * (2 * columns + 8))


def cost_composition(rows: int, columns: int, *, backward: bool = False) -> Cost:
    """Count what PyTorch's automatic differentiation of the reference moves and computes in fp32.

    Args:
        rows: Number of filters.
        columns: Weights per filter.
        backward: Whether it is the gradient.

    Returns:
        Bytes and operations for tensors of the weights' size: forward a square and a sum, backward a doubled weight and
        its product with the spread upstream gradient; what is of a row's size is left out.

    Examples:
        >>> cost_composition(640, 5760).bytes_read
        29491200
    """
    weights = 4 * rows * columns
    if backward:
        return Cost(bytes_read=2 * weights, bytes_written=2 * weights, flops=2 * rows * columns)
    return Cost(bytes_read=2 * weights, bytes_written=weights, flops=2 * rows * columns)
