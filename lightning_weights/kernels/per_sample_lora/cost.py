"""Tiles and memory traffic of linear layers with an adapter per sample."""

from __future__ import annotations

from typing import NamedTuple

from lightning_weights.kernels._op import Cost

LARGEST_RANK = 128  # up to which tiles of h and B fit into registers beside the outputs
SMALLEST_TILE = 16  # what a matrix unit multiplies at least


class Config(NamedTuple):
    """How a launch is cut up.

    Attributes:
        tokens: Tokens of a program's tile.
        columns: Outputs of a program's tile.
        rank: Rank that the tiles have room for, a power of two.
        warps: Warps per program.
    """

    tokens: int
    columns: int
    rank: int
    warps: int


def pick_config(tokens: int, r: int, warp_size: int = 32) -> Config:
    """Choose tiles and warps.

    Args:
        tokens: Tokens per sample.
        r: Rank of the adapters, up to 128.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        The configuration. A few tokens, as in generation, take the smallest tile.

    Examples:
        >>> pick_config(1024, 16), pick_config(1, 64).tokens
        (Config(tokens=32, columns=128, rank=16, warps=4), 16)
    """
    rank = max(SMALLEST_TILE, 1 << (r - 1).bit_length())
    rows = 32 if tokens > SMALLEST_TILE else SMALLEST_TILE
    columns = 128 if rank <= 32 else 64
    return Config(rows, columns, rank, 128 // warp_size)


def cost(samples: int, tokens: int, in_features: int, out_features: int, r: int, *, itemsize: int = 4) -> Cost:
    """Count what the product with A and the Triton kernel move and compute together.

    Args:
        samples: Number N of samples.
        tokens: Tokens T of each.
        in_features: Inputs of the layer.
        out_features: Outputs of the layer.
        r: Rank.
        itemsize: Bytes per element.

    Returns:
        Bytes and operations: tokens, adapters and the layer's outputs are read once, the new outputs written once, and
        h = x Aᵀ is written and read once. Tiles of B and h that several programs read come from the cache after the
        first.

    Examples:
        >>> cost(8, 1024, 4096, 4096, 16, itemsize=2).bytes_written
        67371008
    """
    rows = samples * tokens
    adapters = samples * r * (in_features + out_features)
    return Cost(
        bytes_read=itemsize * (rows * (in_features + out_features + r) + adapters),
        bytes_written=itemsize * rows * (out_features + r),
        flops=2 * rows * r * (in_features + out_features) + 2 * rows * out_features,
    )


def cost_composition(
    samples: int, tokens: int, in_features: int, out_features: int, r: int, *, itemsize: int = 4
) -> Cost:
    """Count what ``base + scale * ((x @ Aᵀ) @ Bᵀ)`` moves, two products, a multiplication and a sum.

    Args:
        samples: Number N of samples.
        tokens: Tokens T of each.
        in_features: Inputs of the layer.
        out_features: Outputs of the layer.
        r: Rank.
        itemsize: Bytes per element.

    Returns:
        Bytes and operations: the update goes through memory three times more than in one pass.

    Examples:
        >>> cost_composition(8, 1024, 4096, 4096, 16, itemsize=2).bytes_written
        201588736
    """
    own = cost(samples, tokens, in_features, out_features, r, itemsize=itemsize)
    outputs = itemsize * samples * tokens * out_features
    return Cost(own.bytes_read + 2 * outputs, own.bytes_written + 2 * outputs, own.flops)
