"""Block size and memory traffic of the statistics-based quantizer."""

from __future__ import annotations

from lightning_weights.kernels._op import Cost

LONGEST_ROW = 4096  # columns that one program keeps in its registers; longer rows are read twice
ELEMENTS, ELEMENTS_ODD = 16, 8  # per thread: 16 bytes of codes, and fewer where masks take registers


def pick_config(columns: int, wide: bool = True, warp_size: int = 32) -> tuple[int, int]:
    """Choose how many columns a program takes at once and its warps.

    Args:
        columns: Length of a row.
        wide: Whether rows start and end at whole vectors.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        Columns, a power of two that holds the row if the row is not too long, and warps per program.

    Examples:
        >>> pick_config(768), pick_config(11008), pick_config(11007, wide=False)
        ((1024, 2), (4096, 8), (4096, 16))
    """
    block = 32 * ELEMENTS
    while block < min(columns, LONGEST_ROW):
        block *= 2
    return block, max(1, block // ((ELEMENTS if wide else ELEMENTS_ODD) * warp_size))


def cost(
    rows: int,
    columns: int,
    *,
    itemsize: int = 4,
    values: bool = True,
    codes: bool = False,
    movable: bool = False,
    tracked: bool = False,
    ema_itemsize: int = 4,
) -> Cost:
    """Count what one call of the Triton kernel moves and computes; 8 bytes per fp32 weight for the values alone.

    Args:
        rows: Rows of the weight.
        columns: Columns of the weight.
        itemsize: Bytes per weight.
        values: Whether quantized weights are written.
        codes: Whether codes are written.
        movable: Whether the boundary mask is written.
        tracked: Whether the tracker advances: two bytes and an average per weight, read and written.
        ema_itemsize: Bytes of an average.

    Returns:
        Bytes and operations. Rows beyond 4096 columns are read a second time, which the L2 cache serves.

    Examples:
        >>> cost(1000, 1000).bytes_read + cost(1000, 1000).bytes_written
        8004000
    """
    total = rows * columns
    state = (2 + ema_itemsize) * total if tracked else 0
    counts = 16 * rows if movable or tracked else 0
    return Cost(
        bytes_read=total * itemsize + state,
        bytes_written=total * (itemsize * values + codes + movable) + state + 4 * rows + counts,
        flops=total * (7 + 2 * values + 5 * movable + 7 * tracked),
    )


def cost_composition(rows: int, columns: int) -> Cost:
    """Count what PyTorch's operators move for the values alone, in fp32, straight-through estimator included.

    Args:
        rows: Rows of the weight.
        columns: Columns of the weight.

    Returns:
        Bytes and operations: absolute values and their mean, quotient, clamp, two steps to the grid, rounding, two
        steps back, division by n, and the sum of the weight and the detached difference.

    Examples:
        >>> composed, fused = cost_composition(1000, 1000), cost(1000, 1000)
        >>> composed.bytes_read + composed.bytes_written > 10 * (fused.bytes_read + fused.bytes_written)
        True
    """
    size = 4 * rows * columns
    passes = 11  # element-wise, each of which reads and writes a tensor
    return Cost(
        bytes_read=(passes + 3) * size + 8 * rows, bytes_written=passes * size + 8 * rows, flops=12 * rows * columns
    )
