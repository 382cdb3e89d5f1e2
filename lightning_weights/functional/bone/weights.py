"""The adapted weight, its update, and the way back from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_weights.errors import check_choice
from lightning_weights.functional.bone.shapes import VARIANTS, BoneVariant
from lightning_weights.kernels.block_affine import block_affine

GUIDED = ("col", "row", "left", "free")  # r×r blocks that multiply those of the weight; the others only add


def as_grid(block: Tensor, variant: BoneVariant) -> Tensor:
    """View the block of ``col``, ``row`` or ``free`` as a grid (g_o, g_i, r, r).

    That is what [`block_affine`][lightning_weights.kernels.block_affine.block_affine] takes.

    Args:
        block: Block of the shape that [`block_shape`][lightning_weights.functional.bone.block_shape] gives.
        variant: Its variant.

    Returns:
        The view.

    Examples:
        >>> as_grid(torch.zeros(3, 4, 4), "col").shape, as_grid(torch.zeros(2, 4, 4), "row").shape
        (torch.Size([3, 1, 4, 4]), torch.Size([1, 2, 4, 4]))
    """
    check_choice("variant", variant, ("col", "row", "free"))
    return block if variant == "free" else block.unsqueeze(1 if variant == "col" else 0)


def bone_weight(weight: Tensor, block: Tensor, variant: BoneVariant, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return the adapted weight W' = W + ΔW, as merging an adapter leaves it.

    Args:
        weight: W (out, in).
        block: Block of the shape that [`block_shape`][lightning_weights.functional.bone.block_shape] gives.
        variant: Its variant.
        dtype: Data type of the result, after arithmetic in fp32 or wider. ``None``: that of the weight.

    Returns:
        W' (out, in), differentiable in weight and block.

    Source: Kang 2024, arXiv:2409.15371.

    Examples:
        >>> bone_weight(torch.eye(2), torch.full((2, 2), 0.5), "miss")
        tensor([[1.5000, 0.5000],
                [0.5000, 1.5000]])
    """
    wanted = weight.dtype if dtype is None else dtype
    if variant in ("col", "row", "free"):
        return block_affine(weight, as_grid(block, variant), dtype=wanted)
    return (_wide(weight) + bone_delta(weight, block, variant)).to(wanted)


def bone_delta(weight: Tensor, block: Tensor, variant: BoneVariant) -> Tensor:
    """Return the update ΔW of a weight in fp32 or wider.

    Args:
        weight: W (out, in).
        block: Block of the shape that [`block_shape`][lightning_weights.functional.bone.block_shape] gives.
        variant: Its variant.

    Returns:
        ΔW (out, in), differentiable in weight and block.

    Source: Kang 2024, arXiv:2409.15371.

    Examples:
        >>> bone_delta(torch.eye(2), torch.full((1, 2, 2), 0.5), "col")
        tensor([[1., 1.],
                [1., 1.]])
    """
    check_choice("variant", variant, VARIANTS)
    (out_features, in_features), wide = weight.shape, _wide(weight)
    block = block.to(torch.promote_types(block.dtype, wide.dtype))
    if variant in ("miss", "mini"):
        r, columns = block.shape
        return block.t().repeat(out_features // columns, math.ceil(in_features / r))[:, :in_features]
    r = block.shape[-1]
    if variant == "left":
        product = torch.bmm(block, wide.reshape(-1, r, in_features))
        return (product + block.repeat(1, 1, in_features // r)).reshape(weight.shape)
    grid = as_grid(block, variant)
    out_blocks, in_blocks = out_features // r, in_features // r
    tiled = grid[[a % grid.shape[0] for a in range(out_blocks)]][:, [b % grid.shape[1] for b in range(in_blocks)]]
    tiles = wide.reshape(out_blocks, r, in_blocks, r).transpose(1, 2)
    return (tiles @ tiled + tiled).transpose(1, 2).reshape(weight.shape)


def unmerged_weight(weight: Tensor, block: Tensor, variant: BoneVariant) -> Tensor:
    r"""Recover the weight W from the merged W'.

    A guided update multiplies W + J by I + B, where all r×r blocks of J are I. Its inverse is therefore an update, too:

    $$W_{ab} = (W'_{ab} - B)(I + B)^{-1} = W'_{ab} (I + C) + C, \qquad C = -(I + B)^{-1} B$$

    The error grows with the condition number of I + B.

    Args:
        weight: Merged weight W' (out, in).
        block: Block of the shape that [`block_shape`][lightning_weights.functional.bone.block_shape] gives.
        variant: Its variant.

    Returns:
        W (out, in), in the data type of W'.

    Raises:
        ValueError: If I + B is singular, or so nearly that no digit would be left.

    Source: Kang 2024, arXiv:2409.15371.

    Examples:
        >>> weight, block = torch.randn(12, 8), 0.1 * torch.randn(3, 4, 4)
        >>> torch.allclose(unmerged_weight(bone_weight(weight, block, "col"), block, "col"), weight, atol=1e-5)
        True
    """
    check_choice("variant", variant, VARIANTS)
    return bone_weight(weight, _inverse_block(block) if variant in GUIDED else -block, variant)


def _inverse_block(block: Tensor) -> Tensor:
    wide = _wide(block.detach())
    factor = wide + torch.eye(block.shape[-1], dtype=wide.dtype, device=block.device)
    worst = float(torch.linalg.cond(factor).max())
    if not worst < 0.1 / torch.finfo(wide.dtype).eps:
        raise ValueError(
            f"I + B has a condition number of {worst:.1e}, so that the weight from before the merge is lost; allowed "
            f"are numbers below {0.1 / torch.finfo(wide.dtype).eps:.1e}. Keep the original weight when you merge"
        )
    inverse: Tensor = torch.linalg.solve(factor, wide)
    return -inverse


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
