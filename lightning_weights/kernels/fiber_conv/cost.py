"""Tiles and memory traffic of the convolution and its gradients."""

from __future__ import annotations

from typing import NamedTuple

from lightning_weights.kernels._op import Cost

FEWEST_ROWS = 16  # that a matrix unit multiplies
SIDE = 64  # of tiles
EXACT_SIDES = (32, 16)  # of channels and basis functions: products in full fp32 take more registers
PROGRAMS = 512  # that keep a GPU busy, of those that add up the weight's gradient
INDEX = 8  # bytes
STAGES = 2  # of software pipelining


class Config(NamedTuple):
    """How a launch is cut up.

    Attributes:
        edges: Edges of a receiver that are multiplied at once.
        orientations: Power of two that orientations are padded to.
        channels: Channels of a program.
        basis: Basis functions that are multiplied at once.
        rows: Pairs of edge and orientation that a program of a gradient takes at once.
        warps: Warps per program.
        even: Whether nothing but edges is padded.
    """

    edges: int
    orientations: int
    channels: int
    basis: int
    rows: int
    warps: int
    even: bool


def pick_config(orientations: int, channels: int, basis: int, warp_size: int = 32, *, exact: bool = False) -> Config:
    """Choose tiles and warps.

    Args:
        orientations: Number O of orientations.
        channels: Number C of channels.
        basis: Number B of basis functions.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.
        exact: Whether products are in full fp32, without tensor cores.

    Returns:
        The configuration; every dimension of a product has at least 16 entries.

    Examples:
        >>> pick_config(8, 64, 256)
        Config(edges=2, orientations=8, channels=64, basis=64, rows=64, warps=4, even=True)
    """
    padded = 1 << (orientations - 1).bit_length()
    sides = EXACT_SIDES if exact else (SIDE, SIDE)
    some = [
        min(side, max(FEWEST_ROWS, 1 << (size - 1).bit_length()))
        for side, size in zip(sides, (channels, basis), strict=True)
    ]
    even = padded == orientations and channels % some[0] == 0 and basis % some[1] == 0
    return Config(
        max(1, FEWEST_ROWS // padded), padded, some[0], some[1], FEWEST_ROWS if exact else SIDE, 128 // warp_size, even
    )


def pick_splits(edges: int, orientations: int, tiles: int) -> int:
    """Choose how many programs share the edges when the weight's gradient is added up.

    Args:
        edges: Number E of edges.
        orientations: Number O of orientations.
        tiles: Tiles of the weight, each with programs of its own.

    Returns:
        The number, at least 1.

    Examples:
        >>> pick_splits(6400, 8, 4), pick_splits(1, 1, 4)
        (128, 1)
    """
    return max(1, min(PROGRAMS // tiles, -(-edges * orientations // SIDE)))


def cost(
    nodes: int, edges: int, orientations: int, channels: int, basis: int, *, fiber: bool = True, itemsize: int = 4
) -> tuple[Cost, Cost]:
    """Count what the Triton kernels move and compute.

    Args:
        nodes: Number N of points.
        edges: Number E of edges.
        orientations: Number O of orientations.
        channels: Number C of channels.
        basis: Number B of basis functions.
        fiber: Whether orientations are contracted.
        itemsize: Bytes per entry of features, basis and weight.

    Returns:
        Bytes and operations of the forward pass and of the three gradients of its sum over edges. Every program loads
        the features of its edges' other ends, of which caches may keep many; blocks of channels load the basis anew.
        The weight and F, which all programs share, count once.

    Examples:
        >>> forward, backward = cost(320, 6400, 8, 64, 64)
        >>> round(forward.bytes_read / (6400 * 8 * 64), 2)  # per message
        8.03
    """
    config = pick_config(orientations, channels, basis)
    rows, messages = edges * orientations, edges * orientations * channels
    blocks, pieces = -(-channels // config.channels), -(-basis // config.basis)
    outputs = nodes * orientations * channels
    shared = channels * basis * itemsize
    gathered = messages * itemsize + blocks * (rows * basis * itemsize + edges * INDEX + 2 * nodes * INDEX) + shared
    contracted = (
        (orientations**2 * channels * itemsize, 4 * outputs, 2 * outputs * orientations) if fiber else (0, 0, 0)
    )
    forward = Cost(
        bytes_read=gathered + contracted[0],
        bytes_written=outputs * itemsize + contracted[1],
        flops=messages * (2 * basis + 2) + contracted[2],
    )
    partial = 4 * channels * basis * pick_splits(edges, orientations, blocks * pieces)
    ends = 2 * messages * itemsize + 2 * edges * INDEX  # of the products that both other gradients begin with
    backward = Cost(
        bytes_read=gathered
        + blocks * edges * INDEX
        + (pieces + pieces) * ends
        + blocks * rows * basis * itemsize
        + shared,
        bytes_written=4 * outputs + rows * basis * itemsize + partial,
        flops=messages * (6 * basis + 4),
    )
    return forward, backward


def cost_composed(nodes: int, edges: int, orientations: int, channels: int, basis: int) -> tuple[Cost, Cost]:
    """Count what the composition of PyTorch's fp32 operators moves: kernels, messages and sums, one by one.

    Args:
        nodes: Number N of points.
        edges: Number E of edges.
        orientations: Number O of orientations.
        channels: Number C of channels.
        basis: Number B of basis functions.

    Returns:
        Bytes and operations of the forward pass and of the three gradients.

    Examples:
        >>> forward, _ = cost_composed(320, 6400, 8, 64, 64)
        >>> forward.bytes_read / (6400 * 8 * 64)  # per message
        20.2
    """
    messages, outputs = 4 * edges * orientations * channels, 4 * nodes * orientations * channels
    functions = 4 * edges * orientations * basis
    # the product with the weight, the gathered features, their product, and the sum, which reads what it adds to
    forward = Cost(
        bytes_read=functions + 4 * messages + outputs,
        bytes_written=3 * messages + 2 * outputs,
        flops=messages // 4 * (2 * basis + 2),
    )
    # the gathered gradient, two products with it, the sum over senders, and two products with basis and weight
    backward = Cost(
        bytes_read=8 * messages + functions + outputs,
        bytes_written=3 * messages + functions + 2 * outputs,
        flops=messages // 4 * (4 * basis + 3),
    )
    return forward, backward
