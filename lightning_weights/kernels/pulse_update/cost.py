"""Block size and memory traffic of the pulse update."""

from __future__ import annotations

from lightning_weights.kernels._op import Cost

FLOPS = {"linear": 2, "soft": 7, "exp": 9}  # of one device's answer to its pulses
OVERHEAD = 16  # rounding, its noise, directions, clipping, reading out
LARGE = 1 << 22  # elements from which wider programs still occupy every multiprocessor several times


def pick_config(numel: int, warp_size: int = 32) -> tuple[int, int]:
    """Choose the block size and the warps of a program; every thread gets four pairs, one 128-bit access of each.

    Args:
        numel: Pairs that one launch covers.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        Pairs per program, a power of two, and warps per program.

    Examples:
        >>> pick_config(1000), pick_config(10**8)
        ((512, 4), (1024, 8))
    """
    warps = 8 if numel >= LARGE else 4
    return warps * warp_size * 4, warps


def cost(numel: int, *, kind: str = "soft", pair: bool = True, grad_itemsize: int = 4, maps: int = 0) -> Cost:
    """Count what the Triton kernel moves and computes for one tensor; 24 bytes per pair of plain devices.

    Args:
        numel: Number of weights.
        kind: How devices answer.
        pair: Whether a weight has two devices, or one and a fixed reference.
        grad_itemsize: Bytes per gradient element; states and weights have 4.
        maps: How many quantities differ between devices.

    Returns:
        Bytes and operations; counters add 32 bytes per program.

    Examples:
        >>> cost(2**20).bytes_read / 2**20, cost(2**20, maps=2).bytes_read / 2**20
        (12.0, 28.0)
    """
    devices = 2 if pair else 1
    programs = -(-numel // pick_config(numel)[0])
    return Cost(
        bytes_read=numel * (grad_itemsize + 4 * devices * (1 + maps)),
        bytes_written=numel * 4 * (devices + 1) + 32 * programs,
        flops=numel * (OVERHEAD + devices * FLOPS[kind]),
    )


def cost_eager(numel: int) -> Cost:
    """Count what the composition of PyTorch's operations moves in fp32, for soft pairs that rise and are refreshed.

    Args:
        numel: Number of weights.

    Returns:
        Bytes and operations: 735 bytes per weight, of which the noise, in 64-bit integers, takes half.

    Examples:
        >>> cost_eager(1000).bytes_read + cost_eager(1000).bytes_written
        735000
    """
    return Cost(431 * numel, 304 * numel, numel * (OVERHEAD + 2 * FLOPS["soft"]))
