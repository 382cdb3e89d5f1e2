"""Block size and memory traffic of the sum of weights and packed signatures."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_weights.kernels._op import Cost
from lightning_weights.kernels.apply_signature.reference import GROUP, packed_bytes

PER_THREAD = 8  # weights: one group of codes, which begins and ends with a byte
WARPS = 4
BYTES_PER_TASK = 3 * 8  # row of int64: tensor, first element, number of elements


def pick_config(warp_size: int = 32) -> tuple[int, int]:
    """Return the weights that a program takes, and its warps.

    Args:
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        Weights, a power of two that gives every thread eight, and warps per program.

    Examples:
        >>> pick_config()
        (1024, 4)
    """
    return PER_THREAD * WARPS * warp_size, WARPS


def cost(numels: Sequence[int], bits: Sequence[int], *, itemsize: int = 4) -> Cost:
    """Count what the Triton kernel moves and computes.

    Args:
        numels: Weights of each tensor.
        bits: Bits of a code of each signature.
        itemsize: Bytes per weight.

    Returns:
        Bytes and operations: weights are read and written once, codes read once; tables add little.

    Examples:
        >>> moved = cost([10**6], [4, 4, 4])
        >>> moved.bytes_read, moved.bytes_written
        (5523536, 4000000)
    """
    block, _ = pick_config()
    programs = sum(-(-numel // block) for numel in numels)
    table = len(numels) * (8 * (2 + len(bits)) + 16 * len(bits))
    codes = sum(packed_bytes(numel, each) for numel in numels for each in bits)
    return Cost(
        bytes_read=itemsize * sum(numels) + codes + programs * BYTES_PER_TASK + table,
        bytes_written=itemsize * sum(numels),
        flops=4 * len(bits) * sum(numels),
    )


def cost_composed(numels: Sequence[int], bits: Sequence[int], *, itemsize: int = 4) -> Cost:
    """Count what unpacking to bytes, dequantizing and adding with one operator after the other moves.

    Args:
        numels: Weights of each tensor.
        bits: Bits of a code of each signature.
        itemsize: Bytes per weight.

    Returns:
        Bytes and operations: codes are unpacked to one byte each, which become fp32, are multiplied, shifted, and
        added; weights that are narrower than fp32 are widened before and narrowed after.

    Examples:
        >>> moved = cost_composed([10**6], [4, 4, 4])
        >>> (moved.bytes_read + moved.bytes_written) / 10**6
        103.5
    """
    read = written = 0
    for numel in numels:
        groups = -(-numel // GROUP)
        for each in bits:
            read += groups * each + numel  # packed, and unpacked
            written += numel
            read += 4 * numel * (2 + 2)  # of the product and the shift; of the scaled sum
            written += 4 * numel * (1 + 2 + 1)
        if itemsize < 4:
            read, written = read + (4 + itemsize) * numel, written + (4 + itemsize) * numel
    return Cost(read, written, 4 * len(bits) * sum(numels))
