"""Transformed ℓ1 of every filter's expected energy, and its gradient, in one pass over the weights each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError, check_number
from lightning_weights.kernels._once import differentiable_once
from lightning_weights.kernels._op import register, takes_triton
from lightning_weights.kernels.transformed_l1.eager import energies, gradients
from lightning_weights.kernels.transformed_l1.reference import transformed_l1_reference

__all__ = ["transformed_l1", "transformed_l1_reference"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # weights of the Triton kernel; numbers per row are fp32


def _forward(
    weight: Tensor, keep: Tensor, precision: float, l0: float, a: float, released: bool
) -> tuple[Tensor, Tensor]:
    arguments = (weight, keep, precision, l0, a, released)
    if takes_triton(weight.device.type, [([weight], DTYPES), ([keep], DTYPES[:1])]):
        from lightning_weights.kernels.transformed_l1.kernel import launch_energies

        values, squares = launch_energies(*arguments)
    else:
        values, squares = energies(*arguments)
    # beyond the pole at s = a the fraction is negative, on it infinite; here, so that compiled graphs check it too
    if released and not bool(((values >= 0) & values.isfinite()).all()):
        raise ValueError(
            f"a is {a}, but a filter's energy reaches it, where (a + 1)s / (a - s) has its pole; allowed with the "
            f"released sign are energies below a; leave released_sign at False, or choose a larger a"
        )
    return values, squares


def _forward_fake(
    weight: Tensor, keep: Tensor, precision: float, l0: float, a: float, released: bool
) -> tuple[Tensor, Tensor]:
    return keep.new_empty(keep.shape), keep.new_empty(keep.shape)


def _backward(
    weight: Tensor,
    keep: Tensor,
    squares: Tensor,
    upstream: Tensor,
    precision: float,
    l0: float,
    a: float,
    released: bool,
) -> tuple[Tensor, Tensor]:
    arguments = (weight, keep, squares, upstream, precision, l0, a, released)
    if takes_triton(weight.device.type, [([weight], DTYPES), ([keep, squares, upstream], DTYPES[:1])]):
        from lightning_weights.kernels.transformed_l1.kernel import launch_gradients

        return launch_gradients(*arguments)
    return gradients(*arguments)


def _backward_fake(weight: Tensor, keep: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), keep.new_empty(keep.shape)


_forward_op = register(
    "transformed_l1",
    "(Tensor weight, Tensor keep, float precision, float l0, float a, bool released) -> (Tensor, Tensor)",
    implementation=_forward,
    fake=_forward_fake,
)
_backward_op = differentiable_once(
    register(
        "transformed_l1_backward",
        "(Tensor weight, Tensor keep, Tensor squares, Tensor upstream, float precision, float l0, float a, "
        "bool released) -> (Tensor, Tensor)",
        implementation=_backward,
        fake=_backward_fake,
    )
)


class _TransformedL1(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: Tensor, keep: Tensor, precision: float, l0: float, a: float, released: bool
    ) -> tuple[Tensor, Tensor]:
        return _forward_op(weight, keep, precision, l0, a, released)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        weight, keep, *ctx.rule = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(weight, keep, output[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        weight, keep, squares = ctx.saved_tensors
        return *_backward_op(weight, keep, squares, upstream, *ctx.rule), None, None, None, None


def transformed_l1(
    weight: Tensor, keep: Tensor, *, precision: float, l0: float, a: float, released: bool = False
) -> Tensor:
    r"""Return the transformed expected energy of every filter, differentiable in weights and probabilities.

    $$\rho_a(s_j) = \frac{(a + 1) s_j}{a + s_j}, \qquad
    s_j = \pi_j \Bigl(\frac{\mathrm{precision}}{2} \|W_j\|^2 + \lambda_0 n_j\Bigr)$$

    Args:
        weight: Weights of shape (filters, ...); n is the number of weights of a filter.
        keep: Probabilities π of the filters to be kept, of shape (filters,).
        precision: Price of half a squared weight, ≥ 0.
        l0: λ0 ≥ 0, the price of a weight.
        a: Shape a > 0 of the transformed ℓ1, at which energies saturate.
        released: Use (a + 1)s / (a - s) of the released code. The check of s < a waits for the device.

    Returns:
        Energies of shape (filters,), in fp32 or wider. They can be differentiated once.

    Raises:
        ValueError: If a number or a shape is not allowed, or with ``released`` an energy is not below a.
        ShardedParameterError: If the weights are sharded.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: Feng et al. 2025, arXiv:2503.20454.

    Examples:
        >>> transformed_l1(torch.ones(2, 4), torch.tensor([1.0, 0.5]), precision=0.5, l0=0.0, a=1.0)
        tensor([1.0000, 0.6667])
    """
    check_number("precision", precision, low=0.0)
    check_number("l0", l0, low=0.0)
    check_number("a", a, low=0.0, low_allowed=False)
    if hasattr(weight, "placements"):
        raise ShardedParameterError("a filter's energy needs its whole row of weights; train without FSDP2")
    if weight.dim() < 2 or keep.shape != weight.shape[:1]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and keep {tuple(keep.shape)}; allowed are (filters, ...) with at "
            f"least two dimensions, and (filters,)"
        )
    # the order within a filter does not matter, so that memory in channels-last order is read as it lies
    inner = sorted(range(1, weight.dim()), key=weight.stride, reverse=True)
    rows = weight.permute(0, *inner).flatten(1)
    wide = torch.promote_types(weight.dtype, torch.float32)
    rule = (precision, l0, a, released)
    values: Tensor = _TransformedL1.apply(rows, keep.to(wide), *rule)[0]  # type: ignore[no-untyped-call]
    return values
