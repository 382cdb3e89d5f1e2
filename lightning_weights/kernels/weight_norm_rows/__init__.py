"""Row norms of a weight plus a low-rank update, in one pass over the weight and without forming the update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError, check_number
from lightning_weights.kernels._once import differentiable_once
from lightning_weights.kernels._op import register, takes_triton
from lightning_weights.kernels.weight_norm_rows.cost import LARGEST_RANK
from lightning_weights.kernels.weight_norm_rows.eager import gradients, norms
from lightning_weights.kernels.weight_norm_rows.reference import SMALLEST_NORM, weight_norm_rows_reference

__all__ = ["SMALLEST_NORM", "weight_norm_rows", "weight_norm_rows_reference"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # weights of the Triton kernel; all else is fp32


def _forward(
    weight: Tensor, factor_i: Tensor, factor_j: Tensor, weight_norm_sq: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    arguments = (weight, factor_i, factor_j, weight_norm_sq, scale)
    rank = len(factor_j)
    if 0 < rank <= LARGEST_RANK and takes_triton(
        weight.device.type, [([weight], DTYPES), ([factor_i, factor_j], DTYPES[:1])]
    ):
        from lightning_weights.kernels.weight_norm_rows.kernel import launch_norms

        return launch_norms(*arguments)
    with torch.autocast(weight.device.type, enabled=False):
        return norms(*arguments)


def _forward_fake(
    weight: Tensor, factor_i: Tensor, factor_j: Tensor, weight_norm_sq: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    return factor_i.new_empty(len(weight)), factor_i.new_empty(factor_i.shape)


def _backward(
    weight: Tensor,
    factor_i: Tensor,
    factor_j: Tensor,
    product: Tensor,
    norm: Tensor,
    upstream: Tensor,
    scale: float,
    of_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(weight.device.type, enabled=False):
        return gradients(weight, factor_i, factor_j, product, norm, upstream, scale, of_weight)


def _backward_fake(
    weight: Tensor,
    factor_i: Tensor,
    factor_j: Tensor,
    product: Tensor,
    norm: Tensor,
    upstream: Tensor,
    scale: float,
    of_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        weight.new_empty(weight.shape if of_weight else 0),
        factor_i.new_empty(factor_i.shape),
        factor_j.new_empty(factor_j.shape),
    )


_forward_op = register(
    "weight_norm_rows",
    "(Tensor weight, Tensor factor_i, Tensor factor_j, Tensor? weight_norm_sq, float scale) -> (Tensor, Tensor)",
    implementation=_forward,
    fake=_forward_fake,
)
_backward_op = differentiable_once(
    register(
        "weight_norm_rows_backward",
        "(Tensor weight, Tensor factor_i, Tensor factor_j, Tensor product, Tensor norm, Tensor upstream, float scale, "
        "bool of_weight) -> (Tensor, Tensor, Tensor)",
        implementation=_backward,
        fake=_backward_fake,
    )
)


class _WeightNormRows(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: Tensor, factor_i: Tensor, factor_j: Tensor, weight_norm_sq: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        return _forward_op(weight, factor_i, factor_j, weight_norm_sq, scale)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        weight, factor_i, factor_j, _, ctx.scale = inputs
        norm, product = output
        ctx.mark_non_differentiable(product)
        ctx.save_for_backward(weight, factor_i, factor_j, product, norm)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        of_weight = ctx.needs_input_grad[0]
        grad_weight, *grads = _backward_op(*ctx.saved_tensors, upstream, ctx.scale, of_weight)
        return grad_weight if of_weight else None, *grads, None, None


def weight_norm_rows(
    weight: Tensor, factor_i: Tensor, factor_j: Tensor, *, scale: float, weight_norm_sq: Tensor | None = None
) -> Tensor:
    r"""Return the norm of every row of a weight plus a low-rank update that is never formed; differentiable.

    $$\nu_a^2 = \|W_a\|^2 + 2 s \langle I_a, W_a J^\top \rangle + s^2 \langle I_a J J^\top, I_a \rangle
    = \|W_a + s\,I_a J\|^2$$

    Args:
        weight: W of shape (m, n).
        factor_i: I of shape (m, r).
        factor_j: J of shape (r, n).
        scale: s.
        weight_norm_sq: ‖W‖² of every row, (m,), if it is known: a frozen weight is then read for one product only.

    Returns:
        ν of shape (m,), in fp32 or wider and not below 1e-12, so that it can divide. It can be differentiated once; the
        gradient of a row at that floor is zero.

    Raises:
        ValueError: If the shapes do not fit each other.
        ShardedParameterError: If the weight is sharded.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: Huang et al. 2025, arXiv:2412.19616, whose code forms I·J for the norm as DoRA's does.

    Examples:
        >>> w, i, j = torch.tensor([[3.0, 2.0]]), torch.ones(1, 1), torch.tensor([[0.0, 2.0]])
        >>> weight_norm_rows(w, i, j, scale=1.0)
        tensor([5.])
    """
    check_number("scale", scale, low=-float("inf"))
    if any(hasattr(tensor, "placements") for tensor in (weight, factor_i, factor_j)):
        raise ShardedParameterError("the norm of a row needs the whole row of weights; train without FSDP2")
    fits = weight.dim() == factor_i.dim() == factor_j.dim() == 2 and (
        factor_i.shape == (weight.shape[0], factor_j.shape[0]) and factor_j.shape[1] == weight.shape[1]
    )
    if not fits or (weight_norm_sq is not None and weight_norm_sq.shape != weight.shape[:1]):
        square = None if weight_norm_sq is None else tuple(weight_norm_sq.shape)
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, factor_i {tuple(factor_i.shape)}, factor_j "
            f"{tuple(factor_j.shape)} and weight_norm_sq {square}; allowed are (m, n), (m, r), (r, n) and (m,)"
        )
    wide = torch.promote_types(weight.dtype, torch.float32)
    known = None if weight_norm_sq is None else weight_norm_sq.to(wide)
    values: Tensor = _WeightNormRows.apply(weight, factor_i.to(wide), factor_j.to(wide), known, float(scale))[0]  # type: ignore[no-untyped-call]
    return values
