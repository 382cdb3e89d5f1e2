"""Block size and memory traffic of the Gram matrix of gradients."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_weights.kernels._op import Cost

PER_THREAD = 16  # elements of each row
WARPS = 4
BYTES_PER_TASK = 3 * 8  # row of int64: tensor, first element, number of elements


def pick_config(warp_size: int = 32) -> tuple[int, int]:
    """Return the elements of each row that a program takes, and its warps.

    Args:
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        Elements per row, a power of two that gives every thread 16, and warps per program.

    Examples:
        >>> pick_config()
        (2048, 4)
    """
    return PER_THREAD * WARPS * warp_size, WARPS


def pairs(objectives: int) -> int:
    """Return the number of different inner products of K vectors.

    Args:
        objectives: K.

    Examples:
        >>> pairs(3)
        6
    """
    return objectives * (objectives + 1) // 2


def cost(numels: Sequence[int], objectives: int, *, itemsize: int = 4) -> Cost:
    """Count what the Triton kernel moves and computes.

    Args:
        numels: Elements of each tensor.
        objectives: Number K of gradients.
        itemsize: Bytes per element.

    Returns:
        Bytes and operations: every gradient is read once; tables and partial sums add little.

    Examples:
        >>> cost([10**6], 3).bytes_read
        12011760
    """
    block, _ = pick_config()
    programs = sum(-(-numel // block) for numel in numels)
    table = programs * BYTES_PER_TASK + 8 * objectives * len(numels)
    return Cost(
        bytes_read=objectives * itemsize * sum(numels) + table,
        bytes_written=4 * pairs(objectives) * programs,
        flops=2 * pairs(objectives) * sum(numels),
    )


def cost_composed(numels: Sequence[int], objectives: int, *, itemsize: int = 4) -> Cost:
    """Count what concatenating the gradients and multiplying the matrix with itself moves.

    Args:
        numels: Elements of each tensor.
        objectives: Number K of gradients.
        itemsize: Bytes per element.

    Returns:
        Bytes and operations: read and written as rows, read and written as a matrix, and read by the product.

    Examples:
        >>> cost_composed([10**6], 3).bytes_read / (3 * 10**6)  # per element
        12.0
    """
    whole = objectives * itemsize * sum(numels)
    return Cost(3 * whole, 2 * whole + 4 * objectives**2, 2 * objectives**2 * sum(numels))
