"""Shapes of the blocks that adapt a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Literal

from lightning_weights.errors import check_choice, check_number

BoneVariant = Literal["col", "row", "left", "miss", "mini", "free"]
VARIANTS = ("col", "row", "left", "miss", "mini", "free")


def grid_sizes(grid: object) -> list[int]:
    """Check the ``grid`` of the variant ``free``, and return it as a plain list.

    Args:
        grid: What was given.

    Raises:
        ValueError: If it is anything but two whole numbers.

    Examples:
        >>> grid_sizes((2, 4))
        [2, 4]
    """
    sizes = list(grid) if isinstance(grid, Sequence) else []
    if len(sizes) != 2 or not all(isinstance(size, Integral) and int(size) >= 1 for size in sizes):
        raise ValueError(
            f"grid is {grid!r}; allowed are two whole numbers, of blocks along outputs and inputs, such as [2, 4], or "
            f"None for all variants but 'free'"
        )
    return [int(size) for size in sizes]


def block_shape(
    variant: BoneVariant,
    out_features: int,
    in_features: int,
    r: int,
    *,
    grid: Sequence[int] | None = None,
    mini_r: int = 1,
    pad: bool = True,
) -> tuple[int, ...]:
    r"""Check the arguments of an adapter and return the shape of its block.

    | variant | shape | update of the block W_ab |
    |---|---|---|
    | ``col`` | (out / r, r, r) | W_ab B_a + B_a |
    | ``row`` | (in / r, r, r) | W_ab B_b + B_b |
    | ``left`` | (out / r, r, r) | B_a W_ab + B_a |
    | ``free`` | (g_o, g_i, r, r) | W_ab B + B with B of row a mod g_o and column b mod g_i |
    | ``miss`` | (r, out) | Dᵀ |
    | ``mini`` | (r, mini_r) | Dᵀ, repeated along the outputs |

    Args:
        variant: How blocks are shared and applied.
        out_features: Outputs of the layer.
        in_features: Inputs of the layer.
        r: Size of the blocks.
        grid: Blocks (g_o, g_i) of ``free``, which no other variant has.
        mini_r: Columns of the block of ``mini``, a divisor of the outputs; 1 for all others.
        pad: Whether ``miss`` and ``mini`` fill up inputs that r doesn't divide with zeros.

    Returns:
        The shape.

    Raises:
        ValueError: If an argument is out of range or doesn't fit the layer, with the nearest r that does.

    Source: Kang 2024, arXiv:2409.15371; ``left`` as in the released kernel, ``miss`` and ``mini`` from v4 on.

    Examples:
        >>> block_shape("col", 12, 8, 4), block_shape("row", 12, 8, 4), block_shape("miss", 12, 8, 3)
        ((3, 4, 4), (2, 4, 4), (3, 12))
    """
    check_choice("variant", variant, VARIANTS)
    check_number("r", r, low=1, whole=True)
    check_number("mini_r", mini_r, low=1, whole=True)
    size = f"of a layer with {out_features} outputs and {in_features} inputs"
    if r > in_features:
        raise ValueError(f"r is {r} {size}; allowed are whole numbers from 1 to {in_features}")
    if grid is not None and variant != "free":
        raise ValueError(f"grid is {grid!r} with variant {variant!r}; only 'free' has a grid of its own")
    if mini_r != 1 and variant != "mini":
        raise ValueError(f"mini_r is {mini_r} with variant {variant!r}; it belongs to 'mini'")
    if variant in ("miss", "mini"):
        return _additive_shape(variant, out_features, in_features, r, mini_r, pad, size)
    if out_features % r or in_features % r:
        raise ValueError(
            f"r is {r} {size}, which it doesn't both divide; the nearest valid r is "
            f"{nearest_r(out_features, in_features, r)}. Or choose variant 'miss', which pads"
        )
    blocks = (out_features // r, in_features // r)
    if variant != "free":
        return (blocks[1] if variant == "row" else blocks[0], r, r)
    if grid is None or len(grid) != 2:
        raise ValueError(f"grid is {grid!r}; variant 'free' needs its two sizes (g_o, g_i), up to {blocks}")
    for name, own, most in zip(("g_o", "g_i"), grid, blocks, strict=True):
        check_number(f"{name} of grid", own, low=1, high=most + 1, whole=True)
    return (*grid, r, r)


def _additive_shape(
    variant: str, out_features: int, in_features: int, r: int, mini_r: int, pad: bool, size: str
) -> tuple[int, int]:
    if in_features % r and not pad:
        nearest = max(d for d in range(1, r + 1) if in_features % d == 0)
        raise ValueError(
            f"r is {r} {size}, whose inputs it doesn't divide, and pad is False; the nearest valid r is {nearest}. Or "
            f"let pad be True"
        )
    if out_features % mini_r:
        raise ValueError(f"mini_r is {mini_r} {size}; allowed are divisors of the outputs")
    return (r, mini_r if variant == "mini" else out_features)


def nearest_r(out_features: int, in_features: int, r: int) -> int:
    """Return the largest common divisor of a layer's sizes that isn't larger than r.

    Args:
        out_features: Outputs of the layer.
        in_features: Inputs of the layer.
        r: Wanted size of the blocks, at least 1.

    Returns:
        The nearest size that is valid for all variants.

    Examples:
        >>> nearest_r(576, 1536, 64), nearest_r(576, 1536, 60)
        (64, 48)
    """
    common = math.gcd(out_features, in_features)
    return max(divisor for divisor in range(1, min(r, common) + 1) if common % divisor == 0)
