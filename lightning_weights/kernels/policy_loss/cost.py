"""Block size and memory traffic of the policy loss."""

from __future__ import annotations

from lightning_weights.kernels._op import Cost

LARGEST_BLOCK = 1024  # tokens of a response that one program takes: 8 per thread of 4 warps
PER_THREAD = 8  # 16 bytes of the narrowest type
NUMBER = 4  # bytes of masks, gradients, sums and of what there is one of per response


def pick_config(width: int, warp_size: int = 32) -> tuple[int, int]:
    """Choose the block size and the warps of a program.

    Args:
        width: Tokens T of a response.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        Tokens per program, a power of two that leaves every thread 8 of them, and warps per program.

    Examples:
        >>> pick_config(100), pick_config(512), pick_config(2048)
        ((256, 1), (512, 2), (1024, 4))
    """
    block = min(max(PER_THREAD * warp_size, 1 << (width - 1).bit_length()), LARGEST_BLOCK)
    return block, block // (PER_THREAD * warp_size)


def pick_vector(width: int) -> int:
    """Return the largest power of two, up to 8, that divides the length of rows.

    Args:
        width: Tokens T of a response.

    Returns:
        1, 2, 4 or 8: masks and addresses are constant over that many elements, so that they move together.

    Examples:
        >>> pick_vector(512), pick_vector(100), pick_vector(9)
        (8, 4, 1)
    """
    return next(vector for vector in (8, 4, 2, 1) if width % vector == 0)


def cost(rows: int, width: int, *, itemsize: int = 4, reference: bool = True, per_token: bool = False) -> Cost:
    """Count what the Triton kernel moves and computes, for loss and gradient together.

    Args:
        rows: Number N of responses.
        width: Tokens T of each.
        itemsize: Bytes per log-probability.
        reference: Whether there is a reference policy.
        per_token: Whether every token has an advantage of its own.

    Returns:
        Bytes and operations; an exponential counts as one operation.

    Examples:
        >>> moved = cost(64, 2048)
        >>> (moved.bytes_read + moved.bytes_written) / (64 * 2048)  # per token
        20.01953125
    """
    tokens = rows * width
    programs = rows * -(-width // pick_config(width)[0])
    streams = (3 if reference else 2) * itemsize + NUMBER + (NUMBER if per_token else 0)
    return Cost(
        bytes_read=tokens * streams + programs * NUMBER * (1 if per_token else 2),
        bytes_written=tokens * NUMBER + 3 * NUMBER * programs,
        flops=tokens * (25 if reference else 17),
    )


def cost_composed(rows: int, width: int) -> Cost:
    """Count what the composition of PyTorch's fp32 operators moves that the kernel replaces, backward pass included.

    It is the usual one: ratio, two surrogates, their maximum, the dual clip, a divergence of the kind k3, and masked
    means, with one advantage per token.

    Args:
        rows: Number N of responses.
        width: Tokens T of each.

    Returns:
        Bytes and operations, of the tensors as large as the log-probabilities.

    Examples:
        >>> moved = cost_composed(64, 2048)
        >>> (moved.bytes_read + moved.bytes_written) / (64 * 2048)  # per token
        540.0
    """
    tokens = rows * width
    # Forward: 32 tensors read and 19 written; backward: 55 and 28; and truth values of a byte each.
    return Cost(bytes_read=tokens * (4 * (32 + 55) + 3), bytes_written=tokens * (4 * (19 + 28) + 1), flops=50 * tokens)
