"""Tile size, memory traffic and arithmetic of KNOWN's predictions."""

from __future__ import annotations

from lightning_weights.kernels._op import Cost
from lightning_weights.kernels.nowcast.reference import FEATURES, GATES, WIDTH, parameter_count

BLOCK = 64  # weights that a program takes
WARPS = 4
SLICE = 16  # of the 64 numbers of a stream that are held at once; also the least that tl.dot multiplies
WIDEST = 64  # columns for the history and all predictions


def pick_config(history: int, recursions: int) -> tuple[int, int, int]:
    """Return the weights that a program takes, the columns of its window, and its warps.

    Args:
        history: Weights that the network looks back at.
        recursions: Predictions.

    Returns:
        Weights, columns (a power of two, at least 16) and warps. More than `WIDEST` columns are too many.

    Examples:
        >>> pick_config(5, 3), pick_config(5, 12)
        ((64, 16, 4), (64, 32, 4))
    """
    return BLOCK, max(SLICE, 1 << (history + recursions - 1).bit_length()), WARPS


def multiplications(history: int) -> int:
    """Return the products in one prediction of one weight, after folding.

    Args:
        history: Weights that the network looks back at.

    Examples:
        >>> multiplications(5)
        7832
    """
    outer = (WIDTH + GATES) * (2 * history + 1)
    return outer + 2 * ((GATES + 1) * (2 * WIDTH + FEATURES) + WIDTH * FEATURES) + 2 * FEATURES


def cost(count: int, history: int, recursions: int = 1) -> Cost:
    """Count what the Triton kernel moves and computes in fp32; exponentials count as one operation.

    Args:
        count: Weights N.
        history: Values S of each.
        recursions: Predictions.

    Returns:
        Bytes and operations; the parameters are in every program's cache.

    Examples:
        >>> cost(10**6, 5).bytes_read / 10**6 < 21, cost(10**6, 5).bytes_written / 10**6
        (True, 4.0)
    """
    per_weight = 2 * multiplications(history) + 8 * WIDTH  # two products, a bound and an exponential, twice
    return Cost(
        bytes_read=4 * count * history + 4 * parameter_count(history),
        bytes_written=4 * count * recursions,
        flops=count * recursions * per_weight,
    )


def cost_composed(count: int, history: int, recursions: int = 1) -> Cost:
    """Count what one operator after the other moves and computes in fp32.

    Args:
        count: Weights N.
        history: Values S of each.
        recursions: Predictions.

    Returns:
        Bytes and operations of the layers and of what lies between them; biases and parameters are not counted.

    Examples:
        >>> moved = cost_composed(1, 5)
        >>> moved.bytes_read + moved.bytes_written
        11812
    """
    read = 2 * (history - 1) + 2 * FEATURES + 4 + history + 1  # differences, the last layer, the next history
    written = history - 1 + 4 + history + 1
    for inputs in (history, history - 1):
        read += inputs + WIDTH + 4 * GATES  # of u, z, its ReLU, g, p and q
        written += WIDTH + 2 * GATES + 3 * WIDTH
        read += 4 * WIDTH + 4 * WIDTH + WIDTH  # q u, bound and exponential; p times it, plus g; v
        written += 5 * WIDTH
        read += 2 * FEATURES  # leaky ReLU and joining the streams
        written += 3 * FEATURES
    products = WIDTH * (2 * history - 1) + 2 * (4 * WIDTH * GATES + WIDTH * FEATURES) + 2 * FEATURES
    return Cost(
        bytes_read=4 * count * recursions * read,
        bytes_written=4 * count * recursions * written,
        flops=count * recursions * (2 * products + 10 * WIDTH),
    )
