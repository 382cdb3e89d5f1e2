"""Tile sizes, memory traffic and arithmetic of interval propagation and of the margin head, all in fp32."""

from __future__ import annotations

from typing import NamedTuple

from lightning_weights.kernels._op import Cost

STAGES = 2  # of software pipelining in the product: the next tiles are on their way while these are multiplied


class Tiles(NamedTuple):
    """Tile sizes of a product and the warps of a program."""

    rows: int
    columns: int
    inner: int
    warps: int


def pick_config(inner: int, columns: int, warp_size: int = 32) -> tuple[Tiles, bool]:
    """Choose the tiles of the forward kernel.

    Two accumulators and the operands of a step must fit into the registers of a program's 128 or 256 threads.

    Args:
        inner: Inputs of the layer.
        columns: Outputs of the layer.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        Tiles, and whether they divide inputs and outputs, so that accesses need no masks along a row: 64 by 64 outputs,
        16 inputs at a time, or smaller tiles, since masks take registers.

    Examples:
        >>> pick_config(512, 512)
        (Tiles(rows=64, columns=64, inner=16, warps=8), True)
        >>> pick_config(512, 10)
        (Tiles(rows=16, columns=32, inner=16, warps=4), False)
    """
    even = inner % 16 == 0 and columns % 64 == 0
    return Tiles(64, 64, 16, 256 // warp_size) if even else Tiles(16, 32, 16, 128 // warp_size), even


def backward_tiles(warp_size: int = 32) -> Tiles:
    """Return the tiles of the element-wise backward kernel: two 128-bit accesses per thread and tensor."""
    return Tiles(rows=8, columns=128, inner=1, warps=128 // warp_size)


def margin_tiles(inner: int, warp_size: int = 32) -> tuple[Tiles, bool]:
    """Choose samples, classes and inputs of a tile of the margin head, whose w_y - w_j stay in registers.

    Args:
        inner: Inputs of the last layer.
        warp_size: Threads of a warp.

    Returns:
        Tiles, and whether they divide the inputs; then every thread loads 128 bits of each operand.

    Examples:
        >>> margin_tiles(512)
        (Tiles(rows=8, columns=8, inner=64, warps=4), True)
    """
    even = inner % 64 == 0
    return Tiles(rows=8, columns=8, inner=64 if even else 16, warps=128 // warp_size), even


def cost(
    rows: int,
    inner: int,
    columns: int,
    *,
    bias: bool = True,
    affine: bool = True,
    relu: bool = True,
    sound: bool = False,
) -> Cost:
    """Count what the forward kernel moves and computes, every tensor once; tiles read again come from the cache.

    Args:
        rows: N.
        inner: Inputs of the layer.
        columns: Outputs of the layer.
        bias: Whether there is a bias.
        affine: Whether BatchNorm's affine map follows; then Wc + b is stored for its gradient.
        relu: Whether a ReLU follows.
        sound: Whether half-widths are rounded up, which takes a third product.

    Returns:
        Bytes and operations; partial sums add 32 bytes per tile.

    Examples:
        >>> cost(256, 64, 1024).bytes_read + cost(256, 64, 1024).bytes_written
        5650432
    """
    outputs, (tiles, _) = rows * columns, pick_config(inner, columns)
    programs = -(-rows // tiles.rows) * -(-columns // tiles.columns)
    return Cost(
        bytes_read=4 * (2 * rows * inner + columns * inner + columns * (bias + 2 * affine)),
        bytes_written=4 * outputs * (2 + affine + 2 * relu) + 32 * programs,
        flops=outputs * (2 * inner * (3 if sound else 2) + bias + 4 * affine + 14 + 6 * relu + 5 * sound),
    )


def cost_eager(
    rows: int, inner: int, columns: int, *, bias: bool = True, affine: bool = True, relu: bool = True
) -> Cost:
    """Count what the eager composition on the CPU moves and computes, between caches and memory alike.

    Args:
        rows: N.
        inner: Inputs of the layer.
        columns: Outputs of the layer.
        bias: Whether there is a bias.
        affine: Whether BatchNorm's affine map follows.
        relu: Whether a ReLU follows.

    Returns:
        Bytes and operations.

    Examples:
        >>> cost_eager(256, 64, 1024).bytes_read + cost_eager(256, 64, 1024).bytes_written
        51535872
    """
    # In passes over the outputs (read, written): both ends, statistics, products, affine map, ReLU.
    passes = [(4, 2), (16, 6), (0, 2)] + [(2, 2)] * affine + [(8, 6)] * relu
    read, written = (sum(column) for column in zip(*passes, strict=True))
    operands = 2 * rows * inner + 3 * columns * inner + columns * (bias + 4 * affine)
    return Cost(
        bytes_read=4 * (rows * columns * read + operands),
        bytes_written=4 * (rows * columns * written + columns * inner + columns * affine),
        flops=cost(rows, inner, columns, bias=bias, affine=affine, relu=relu).flops + columns * inner,
    )


def cost_backward(rows: int, columns: int, *, grads: int = 2, affine: bool = True) -> Cost:
    """Count what the backward kernel moves and computes; the products behind it are the vendor library's.

    Args:
        rows: N.
        columns: Outputs of the layer.
        grads: How many of the four interval results got a gradient; the sums' is small.
        affine: Whether BatchNorm's affine map followed.

    Returns:
        Bytes and operations; sums over rows add 4 or 12 bytes per column and block of rows.

    Examples:
        >>> cost_backward(256, 1024).bytes_read // (256 * 1024)
        20
    """
    outputs, blocks = rows * columns, -(-rows // backward_tiles().rows)
    return Cost(
        bytes_read=4 * outputs * (2 + grads + affine) + 4 * columns * affine + 32,
        bytes_written=8 * outputs + 4 * columns * blocks * (3 if affine else 1),
        flops=outputs * (20 + 4 * grads + 6 * affine),
    )


def cost_margins(samples: int, classes: int, inner: int, *, bias: bool = True) -> Cost:
    """Count what the forward kernel of the margin head moves and computes, every tensor once.

    Args:
        samples: N.
        classes: K.
        inner: Inputs of the last layer.
        bias: Whether there is a bias.

    Returns:
        Bytes and operations. Building w_y - w_j for all would write and read 8·N·(K-1)·in bytes on top.

    Examples:
        >>> cost_margins(128, 200, 512).bytes_read
        935712
    """
    return Cost(
        bytes_read=4 * (2 * samples * inner + classes * inner + classes * bias) + 8 * samples,
        bytes_written=4 * samples * (classes - 1),
        flops=samples * classes * (6 * inner + 2 * bias),
    )
