"""Block size and memory traffic of the sparse AdamW step."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_weights.kernels._op import Cost

BYTES_PER_TENSOR, BYTES_PER_TASK = 6 * 8, 3 * 8  # rows of int64: addresses and position, and the task of a program
INDEX, MOMENT = 4, 4  # bytes
SECTOR = 32  # bytes that a GPU moves for one entry when no neighbour is chosen
FLOPS = 13  # per entry: two averages, a square, a root, a sum, a quotient, a product, a difference, a decay
LARGE = 1 << 21  # entries from which wider programs still occupy every multiprocessor several times


def pick_config(count: int, warp_size: int = 32) -> tuple[int, int]:
    """Choose the block size and the warps of a program; every thread gets eight entries.

    Args:
        count: Entries that one launch covers.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        Entries per program, a power of two, and warps per program.

    Examples:
        >>> pick_config(1000), pick_config(10**8)
        ((1024, 4), (2048, 8))
    """
    warps = 8 if count >= LARGE else 4
    return warps * warp_size * 8, warps


def cost(
    counts: Sequence[int],
    *,
    param_itemsize: int = 4,
    grad_itemsize: int = 4,
    gathered: bool = False,
    scattered: bool = False,
) -> Cost:
    """Count what the Triton kernel moves and computes in one step; 32 bytes per fp32 entry plus tables.

    Args:
        counts: Chosen entries of each tensor.
        param_itemsize: Bytes per weight.
        grad_itemsize: Bytes per gradient element.
        gathered: Whether gradients are those of the chosen entries alone, in fp32.
        scattered: Whether no two chosen entries share one of the 32-byte sectors in which GPUs move memory: the worst
            case; the best is that chosen entries are neighbours.

    Returns:
        Bytes and operations; tables add 24 bytes per program and 48 per tensor.

    Examples:
        >>> cost([10**6]).bytes_read + cost([10**6]).bytes_written
        32023496
    """
    total = sum(counts)
    block, _ = pick_config(total)
    programs = sum(-(-count // block) for count in counts)
    weight = SECTOR if scattered else param_itemsize
    grad = 4 if gathered else SECTOR if scattered else grad_itemsize
    tables = BYTES_PER_TASK * programs + BYTES_PER_TENSOR * len(counts)
    return Cost(
        bytes_read=total * (INDEX + weight + grad + 2 * MOMENT) + tables,
        bytes_written=total * (weight + 2 * MOMENT),
        flops=FLOPS * total,
    )


def cost_dense_mask(numels: Sequence[int], density: float) -> Cost:
    """Count what a step with a mask of truth values moves in fp32, as published code for masked training takes it.

    It selects from the gradient, writes the update into zeros of the full size, and adds those to the weights.

    Args:
        numels: Elements of each tensor.
        density: Fraction that is chosen.

    Returns:
        Bytes and operations: 26 bytes per weight, chosen or not, and 36 per chosen entry.

    Examples:
        >>> cost_dense_mask([1000], 0.05).bytes_read + cost_dense_mask([1000], 0.05).bytes_written
        27800
    """
    total = sum(numels)
    chosen = round(density * total)
    # In passes over all weights: mask and gradient are read, zeros written; mask read; weight and update read, weight
    # written. The chosen entries are written by the selection, read and written as moments, and read by the scattering.
    return Cost(
        bytes_read=total * (1 + 4 + 1 + 8) + chosen * (4 + 8 + 4),
        bytes_written=total * (4 + 4 + 4) + chosen * (4 + 8 + 4 + 4),
        flops=FLOPS * chosen + 2 * total,
    )
