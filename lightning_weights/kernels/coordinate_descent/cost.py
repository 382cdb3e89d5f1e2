"""Size of a program and memory traffic of coordinate descent on Gram matrices."""

from __future__ import annotations

from lightning_weights.kernels._op import Cost

SHORTEST, LONGEST = 32, 512  # weights of a problem; all of them stay in the registers of one warp
STEP_FLOPS = 12  # of one coordinate's turn, for each of the weights, which all programs compute at once


def pick_config(size: int, itemsize: int = 4) -> tuple[int, int]:
    """Choose the length of the vectors that a program holds, and its warps.

    The coordinates' turns come one after the other: a single warp has nobody to wait for, as long as its threads hold
    no more than 16 bytes of each vector.

    Args:
        size: Weights p of a problem.
        itemsize: Bytes of a number.

    Returns:
        A power of two, and warps per program.

    Examples:
        >>> pick_config(43), pick_config(78), pick_config(78, 8)
        ((64, 1), (128, 1), (128, 2))
    """
    length = SHORTEST
    while length < size:
        length *= 2
    return length, max(1, length * itemsize // 512)


def cost(paths: int, problems: int, size: int, sweeps: int, *, itemsize: int = 4) -> Cost:
    """Count what the Triton kernel asks for and computes.

    Args:
        paths: Paths, each a program.
        problems: Problems of a path.
        size: Weights p of a problem.
        sweeps: Sweeps of all problems together.
        itemsize: Bytes of a number.

    Returns:
        Bytes and operations: every path reads its Gram matrix from memory once; the rows that its sweeps go through
        come from the cache from then on.

    Examples:
        >>> cost(231, 30, 64, 10**6).bytes_read == cost(231, 30, 64, 1).bytes_read
        True
    """
    length, _ = pick_config(size, itemsize)
    passes = sweeps + paths * problems
    read = itemsize * paths * ((size + 1) * length + 1 + 2 * problems) + 8 * paths
    written = paths * problems * (itemsize * (length + 1) + 8)
    return Cost(read, written, passes * size * length * STEP_FLOPS)


def cost_side_by_side(cells: int, size: int, sweeps: int, *, itemsize: int = 4) -> Cost:
    """Count what one operator after the other moves, all problems side by side.

    Args:
        cells: Problems side by side.
        size: Weights p of a problem.
        sweeps: Sweeps of every problem.
        itemsize: Bytes of a number.

    Returns:
        Bytes and operations: in its turn, a coordinate of all problems goes through nine vectors, three of them
        written, and the slopes of seven more coordinates on average are read and changed.

    Examples:
        >>> side, fused = cost_side_by_side(231, 64, 1000), cost(231, 1, 64, 231 * 1000)
        >>> round(side.bytes_read / fused.bytes_read)
        338
    """
    turns = sweeps * size * cells
    return Cost(itemsize * turns * (8 + 2 * 7), itemsize * turns * (3 + 7), turns * (4 + 2 * (7 + size)))
