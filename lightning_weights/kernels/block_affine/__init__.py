"""Weights whose r×r blocks are mapped affinely, W(I + B) + B, and linear layers that use them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError
from lightning_weights.kernels.block_affine.ops import BlockAffine, BlockAffineLinear, build_op
from lightning_weights.kernels.block_affine.reference import block_affine_reference

__all__ = ["block_affine", "block_affine_linear", "block_affine_reference", "built_weight"]


def block_affine(weight: Tensor, block: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""Map every r×r block of a weight affinely, through a grid of blocks that is tiled over the weight.

    $$W'_{ab} = W_{ab} (I + B_{a \bmod g_o,\, b \bmod g_i}) + B_{a \bmod g_o,\, b \bmod g_i}$$

    I + B is formed in fp32 or wider, and the result is rounded once. No block is copied or permuted. Autocast does not
    reach it. Differentiable once, in weight and block; gradients add up in one order.

    Args:
        weight: W (out, in).
        block: B (g_o, g_i, r, r); r divides out and in. ``g_o = out / r, g_i = 1`` gives every block row of the weight
            its own, ``g_o = 1, g_i = in / r`` every block column.
        dtype: Data type of the result; ``None`` for that of the weight.

    Returns:
        W' (out, in).

    Raises:
        ValueError: If the shapes don't fit.
        ShardedParameterError: If an operand is sharded.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: Kang 2024, arXiv:2409.15371v3.

    Examples:
        >>> block_affine(torch.ones(2, 4), torch.full((1, 1, 2, 2), 0.5))
        tensor([[2.5000, 2.5000, 2.5000, 2.5000],
                [2.5000, 2.5000, 2.5000, 2.5000]])
    """
    _check(weight, block)
    wanted = weight.dtype if dtype is None else dtype
    return BlockAffine.apply(weight, block, wanted)  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def built_weight(weight: Tensor, block: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return [`block_affine`][] as a constant, to be passed to [`block_affine_linear`][] as often as the block stays.

    Args:
        weight: W (out, in).
        block: B (g_o, g_i, r, r).
        dtype: Data type of the result; ``None`` for that of the weight.

    Returns:
        W' (out, in), without gradient.

    Raises:
        ValueError: If the shapes don't fit.
        ShardedParameterError: If an operand is sharded.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Examples:
        >>> built_weight(torch.ones(2, 2), torch.ones(1, 1, 2, 2, requires_grad=True)).requires_grad
        False
    """
    _check(weight, block)
    return build_op(weight, block, weight.dtype if dtype is None else dtype, True)  # type: ignore[no-any-return]


def block_affine_linear(
    tokens: Tensor, weight: Tensor, block: Tensor, bias: Tensor | None = None, *, built: Tensor | None = None
) -> Tensor:
    r"""Apply a linear layer with the block-affine weight.

    $$y = x W'^\top + c, \qquad \nabla_B = \sum_{a, b} (W_{ab} + I)^\top \, \nabla_{y_a}^\top x_b$$

    The sum is over the blocks of the weight that share B.

    The gradient of W' is never whole in memory: it is made in pieces that are contracted at once. Differentiable once,
    in tokens, block and bias; the weight is a constant.

    Args:
        tokens: x (..., in), in the data type of the products: W' is rounded to it.
        weight: W (out, in), without gradient.
        block: B (g_o, g_i, r, r), as in [`block_affine`][].
        bias: c (out,), in the tokens' data type.
        built: What [`built_weight`][] returned, in the tokens' data type. Without it, W' is made here, and once more in
            the backward pass, so that no weight is kept between them.

    Returns:
        y (..., out).

    Raises:
        ValueError: If shapes or data types don't fit, or the weight requires gradients.
        ShardedParameterError: If an operand is sharded.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: Kang 2024, arXiv:2409.15371v3.

    Examples:
        >>> block_affine_linear(torch.ones(1, 2), torch.eye(2), torch.full((1, 1, 2, 2), 0.5))
        tensor([[3., 3.]])
    """
    _check(weight, block)
    if weight.requires_grad:
        raise ValueError("weight requires gradients, but it is a constant here; use block_affine and linear for both")
    if tokens.dim() == 0 or tokens.shape[-1] != weight.shape[1]:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}; allowed is (..., {weight.shape[1]})")
    for name, tensor, shape in (("bias", bias, weight.shape[:1]), ("built", built, weight.shape)):
        if tensor is not None and (tensor.shape != shape or tensor.dtype != tokens.dtype):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and {tensor.dtype}; allowed are {tuple(shape)} and the "
                f"tokens' {tokens.dtype}"
            )
    rows = tokens.reshape(-1, tokens.shape[-1])
    outputs: Tensor = BlockAffineLinear.apply(rows, weight, block, bias, built)  # type: ignore[no-untyped-call]
    return outputs.view(*tokens.shape[:-1], weight.shape[0])


def _check(weight: Tensor, block: Tensor) -> None:
    if hasattr(weight, "placements") or hasattr(block, "placements"):
        raise ShardedParameterError(
            "blocks need the whole weight, but an operand is sharded: let FSDP gather weight and block in one unit, "
            "whose forward pass comes here, or pass full_tensor()"
        )
    fits = weight.dim() == 2 and block.dim() == 4 and block.shape[-1] == block.shape[-2] > 0
    if fits:
        grids = [size // block.shape[-1] for size in weight.shape]
        fits = all(size % block.shape[-1] == 0 for size in weight.shape)
        fits = fits and all(1 <= own <= most for own, most in zip(block.shape, grids, strict=False))
    if not fits:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and block {tuple(block.shape)}; allowed are (out, in) and "
            f"(g_o, g_i, r, r) with r a divisor of both sizes, g_o up to out / r and g_i up to in / r"
        )
