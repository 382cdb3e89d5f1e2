"""Block size and memory traffic of the joint loss."""

from __future__ import annotations

from lightning_weights.kernels._op import Cost

LARGEST_BLOCK = 4096  # logits of a row that one program holds at a time
LABEL, SCALAR = 8, 4  # bytes of a label, and of a loss or statistic in fp32


def pick_config(classes: int, warp_size: int = 32) -> tuple[int, int]:
    """Choose the block size and the warps of a program.

    Args:
        classes: Number C of classes.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        Classes per program, a power of two that leaves every thread 8 of them, and warps per program.

    Examples:
        >>> pick_config(100), pick_config(1000), pick_config(50_000)
        ((256, 1), (1024, 4), (4096, 16))
    """
    block = min(max(8 * warp_size, 1 << (classes - 1).bit_length()), LARGEST_BLOCK)
    return block, block // (8 * warp_size)


def pick_vector(classes: int, known: int, *strides: int) -> int:
    """Return the largest power of two, up to 8, that divides both numbers of classes and the lengths of rows.

    Args:
        classes: Number C of classes.
        known: Number C_o of the teacher's classes.
        *strides: Elements from one row to the next.

    Returns:
        1, 2, 4 or 8: masks and addresses are constant over that many elements, so that they move together.

    Examples:
        >>> pick_vector(1000, 900, 1000, 900), pick_vector(100, 50, 100, 50), pick_vector(48, 32, 48, 32)
        (4, 2, 8)
    """
    return next(vector for vector in (8, 4, 2, 1) if all(x % vector == 0 for x in (classes, known, *strides)))


def cost(rows: int, classes: int, known: int, *, itemsize: int = 4, teacher_itemsize: int = 4) -> tuple[Cost, Cost]:
    """Count what the two Triton kernels move and compute.

    Args:
        rows: Number N of samples.
        classes: Number C of classes.
        known: Number C_o of the teacher's classes.
        itemsize: Bytes per logit of the student.
        teacher_itemsize: Bytes per logit of the teacher.

    Returns:
        Bytes and operations of the forward and of the backward pass; an exponential counts as one operation.

    Examples:
        >>> forward, backward = cost(256, 1000, 750)
        >>> (forward.bytes_read + backward.bytes_read + backward.bytes_written) / (256 * 1000)  # per logit
        18.036
    """
    logits = rows * (classes * itemsize + known * teacher_itemsize)
    block, _ = pick_config(classes)
    programs = rows * -(-classes // block)  # of the backward pass; each reads its row's label and statistics
    forward = Cost(
        bytes_read=logits + rows * (LABEL + itemsize),
        bytes_written=rows * 4 * SCALAR,
        flops=rows * (4 * classes + 13 * known),
    )
    backward = Cost(
        bytes_read=logits + programs * (LABEL + 4 * SCALAR),
        bytes_written=rows * classes * itemsize,
        flops=rows * (5 * classes + 8 * known),
    )
    return forward, backward


def cost_composed(rows: int, classes: int, known: int) -> tuple[Cost, Cost]:
    """Count what the composition of PyTorch's fp32 operators moves that the kernels replace.

    It is ``(1 - λ) * cross_entropy(o, y) + λ * -(softmax(ô / T) * log_softmax(o[:, :known] / T)).sum(1).mean()``, whose
    backward pass autograd runs.

    Args:
        rows: Number N of samples.
        classes: Number C of classes.
        known: Number C_o of the teacher's classes.

    Returns:
        Bytes and operations of the forward and of the backward pass, of the tensors as large as the logits.

    Examples:
        >>> both = cost_composed(256, 1000, 750)
        >>> sum(part.bytes_read + part.bytes_written for part in both) / (256 * 1000)  # per logit
        100.0
    """
    all_classes, old = 4 * rows * classes, 4 * rows * known
    # Each log_softmax and softmax reads and writes once; two divisions and the product come before the sum.
    forward = Cost(all_classes + 7 * old, all_classes + 5 * old, rows * (5 * classes + 14 * known))
    # The product, log_softmax, the division and the slice go back, then nll_loss, log_softmax and the sum of both.
    backward = Cost(4 * all_classes + 5 * old, 4 * all_classes + 3 * old, rows * (5 * classes + 6 * known))
    return forward, backward
