"""Block size and memory traffic of the cross-entropy per sample."""

from __future__ import annotations

from lightning_weights.kernels._op import Cost

LARGEST_BLOCK = 4096  # logits of a row that one program holds at a time
LABEL, SCALAR = 8, 4  # bytes of a label, and of a loss, statistic or weight in fp32


def pick_config(classes: int, warp_size: int = 32) -> tuple[int, int]:
    """Choose the block size and the warps of a program.

    Args:
        classes: Number V of classes.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        Classes per block, a power of two that leaves every thread 8 of them, and warps per program.

    Examples:
        >>> pick_config(100), pick_config(1000), pick_config(49_152)
        ((256, 1), (1024, 4), (4096, 16))
    """
    block = min(max(8 * warp_size, 1 << (classes - 1).bit_length()), LARGEST_BLOCK)
    return block, block // (8 * warp_size)


def cost(rows: int, classes: int, *, counted: int | None = None, itemsize: int = 2) -> tuple[Cost, Cost]:
    """Count what the two Triton kernels move and compute.

    Args:
        rows: Number R of tokens.
        classes: Number V of classes.
        counted: How many of the rows have a label that counts; of the others no logit is read. ``None``: all.
        itemsize: Bytes per logit.

    Returns:
        Bytes and operations of the forward and of the backward pass; an exponential counts as one operation.

    Examples:
        >>> forward, backward = cost(1024, 49_152)
        >>> round((forward.bytes_read + backward.bytes_read + backward.bytes_written) / (1024 * 49_152), 2)  # per logit
        6.0
    """
    counted = rows if counted is None else counted
    logits = counted * classes * itemsize
    block, _ = pick_config(classes)
    programs = -(-classes // block)  # per row, of the backward pass; each reads its row's label, statistic and weight
    forward = Cost(
        bytes_read=logits + rows * LABEL + counted * itemsize,
        bytes_written=rows * 2 * SCALAR,
        flops=counted * 4 * classes,
    )
    backward = Cost(
        bytes_read=logits + rows * programs * (LABEL + 2 * SCALAR),
        bytes_written=rows * classes * itemsize,
        flops=counted * 4 * classes,
    )
    return forward, backward


def cost_composed(rows: int, classes: int, *, itemsize: int = 2) -> tuple[Cost, Cost]:
    """Count what the composition of PyTorch's operators moves that the kernels replace.

    It is ``cross_entropy(logits.float(), labels, reduction="none")``, whose backward pass autograd runs.

    Args:
        rows: Number R of tokens.
        classes: Number V of classes.
        itemsize: Bytes per logit.

    Returns:
        Bytes and operations of the forward and of the backward pass, of the tensors as large as the logits.

    Examples:
        >>> both = cost_composed(1024, 49_152)
        >>> sum(part.bytes_read + part.bytes_written for part in both) / (1024 * 49_152)  # per logit
        36.0
    """
    narrow, wide = rows * classes * itemsize, 4 * rows * classes
    cast = 0 if itemsize == 4 else 1  # fp32 logits are not copied
    # log_softmax reads and writes once; the gradient of picking a label is a matrix of zeros, which log_softmax's
    # backward pass reads beside its own result.
    forward = Cost(cast * narrow + wide, cast * wide + wide, rows * 5 * classes)
    backward = Cost(2 * wide + cast * wide, wide + wide + cast * narrow, rows * 4 * classes)
    return forward, backward
