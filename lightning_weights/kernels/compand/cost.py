"""Block size and memory traffic of companding."""

from __future__ import annotations

from lightning_weights.kernels._op import Cost

PER_THREAD = 8  # elements: one 128-bit access in bf16, two in fp32
MOST_WARPS = 4


def pick_config(columns: int, warp_size: int = 32) -> tuple[int, int]:
    """Choose how many elements of a row a program takes, and its warps.

    Every thread gets eight elements; rows that are shorter than 1024 elements get fewer warps.

    Args:
        columns: Elements that share a scale and a width and lie side by side.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        Elements per program, a power of two, and warps per program.

    Examples:
        >>> pick_config(27), pick_config(576), pick_config(10**6)
        ((256, 1), (1024, 4), (1024, 4))
    """
    warps = 1
    while warps < MOST_WARPS and warps * warp_size * PER_THREAD < columns:
        warps *= 2
    return warps * warp_size * PER_THREAD, warps


def cost(rows: int, columns: int, *, itemsize: int = 4, backward: bool = False, sums: bool = False) -> Cost:
    """Count what one call of the Triton kernel moves and computes with the arctan.

    Args:
        rows: Number of scales and widths.
        columns: Weights per scale.
        itemsize: Bytes per weight; scales, widths and partial sums have 4.
        backward: Whether it is the gradient.
        sums: Whether the gradients to scales and widths are among it: two partial sums per program, which PyTorch adds.

    Returns:
        Bytes and operations: forward the weights are read and written once, backward read twice and written once.

    Examples:
        >>> cost(1, 10**6).bytes_read, cost(1, 10**6, backward=True).bytes_read
        (4007816, 8007816)
    """
    block, _ = pick_config(columns)
    programs = rows * -(-columns // block)
    count, scales = rows * columns, 2 * 4 * programs
    if not backward:
        return Cost(count * itemsize + scales, count * itemsize, 25 * count)
    partial = 2 * 4 * programs if sums else 0
    added = 2 * 4 * rows if sums else 0
    return Cost(
        2 * count * itemsize + scales + partial, count * itemsize + partial + added, (34 if sums else 9) * count
    )


def cost_composition(rows: int, columns: int, *, backward: bool = False, sums: bool = False) -> Cost:
    """Count what PyTorch's automatic differentiation of ``a * torch.atan(v / b)`` moves and computes in fp32.

    Args:
        rows: Number of scales and widths.
        columns: Weights per scale.
        backward: Whether it is the gradient.
        sums: Whether scales and widths get gradients.

    Returns:
        Bytes and operations for tensors of the weights' size: forward a quotient, its arctan and a product, backward
        their gradients one by one; what is of a row's size is left out.

    Examples:
        >>> cost_composition(1, 10**6).bytes_read
        12000000
    """
    count = rows * columns
    weights = 4 * count
    if not backward:
        return Cost(3 * weights, 3 * weights, 17 * count)
    # Products with a, with the slope (three operations) and with 1 / b; two products and sums, and a quotient, more.
    read, written = (7, 5) if not sums else (15, 9)
    return Cost(read * weights, written * weights, (6 if not sums else 13) * count)
