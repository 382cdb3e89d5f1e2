"""Block size and memory traffic of the CLASSP step."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_weights.kernels._op import Cost

BYTES_PER_TABLE_ROW = 3 * 8  # three int64: addresses of a tensor, or the task of a program
LARGE = 1 << 22  # elements from which wider programs still occupy every multiprocessor several times


def pick_config(numel: int, itemsize: int, warp_size: int = 32) -> tuple[int, int]:
    """Choose the block size and the warps of a program.

    Every thread gets at least eight elements and at least 16 bytes of the narrowest tensor, one 128-bit access.

    Args:
        numel: Elements that one launch covers.
        itemsize: Bytes per element of the narrowest tensor.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        Elements per program, a power of two, and warps per program.

    Examples:
        >>> pick_config(1000, 4), pick_config(10**9, 2)
        ((1024, 4), (2048, 8))
    """
    warps = 8 if numel >= LARGE else 4
    return warps * warp_size * max(8, 16 // itemsize), warps


def cost(
    numels: Sequence[int],
    *,
    param_itemsize: int = 4,
    grad_itemsize: int = 4,
    power: float = 1.0,
    apply_decay: bool = True,
    skipped: int = 0,
) -> Cost:
    """Count what the Triton kernel moves and computes in one step; 20 bytes per accepted fp32 weight plus tables.

    Args:
        numels: Elements of each tensor.
        param_itemsize: Bytes per weight.
        grad_itemsize: Bytes per gradient element; accumulators have 4.
        power: p.
        apply_decay: Whether the step is divided by the root.
        skipped: Weights in blocks where nothing is accepted: of those only the gradient is read.

    Returns:
        Bytes and operations; tables and counters add 32 bytes per program and 24 per tensor.

    Examples:
        >>> cost([10**6]).bytes_read + cost([10**6]).bytes_written
        20031288
    """
    total = sum(numels)
    block, _ = pick_config(total, min(param_itemsize, grad_itemsize))
    programs = sum(-(-numel // block) for numel in numels)
    updated = total - skipped
    return Cost(
        bytes_read=total * grad_itemsize
        + updated * (4 + param_itemsize)
        + BYTES_PER_TABLE_ROW * (programs + len(numels)),
        bytes_written=updated * (4 + param_itemsize) + 8 * programs,
        flops=2 * total + updated * _flops(power, apply_decay),
    )


def cost_eager(numels: Sequence[int], *, power: float = 1.0, apply_decay: bool = True) -> Cost:
    """Count what the eager composition on the CPU moves and computes in fp32, between caches and memory alike.

    Args:
        numels: Elements of each tensor.
        power: p.
        apply_decay: Whether the step is divided by the root.

    Returns:
        Bytes and operations: with decay 56 bytes per weight for p = 1 and 72 for other p.

    Examples:
        >>> cost_eager([1000]).bytes_read + cost_eager([1000]).bytes_written
        56000
    """
    # In passes over the weights (read, written): mask and check, accumulate, update.
    check = (3, 2)
    accumulate = (2, 1) if power == 1.0 else (3, 2)
    update = (2, 1)
    if apply_decay:
        update = (4, 2) if power == 1.0 else (5, 3)
    read, written = (4 * sum(numels) * sum(passes) for passes in zip(check, accumulate, update, strict=True))
    return Cost(read, written, sum(numels) * (2 + _flops(power, apply_decay)))


def _flops(power: float, apply_decay: bool) -> int:
    """Operations per updated weight; a general power is a logarithm, a product and an exponential."""
    accumulate, root = {1.0: (1, 0), 2.0: (2, 1)}.get(power, (4, 3))
    return accumulate + 2 + (root + 2 if apply_decay else 0)
