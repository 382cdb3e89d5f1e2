"""Quantization with a learned step (LSQ)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_weights.errors import check_number
from lightning_weights.functional.ofq.weights import CodedWeight, along

SMALLEST_STEP = 1e-5


def lsq_bounds(bits: int, signed: bool) -> tuple[int, int]:
    """Return the smallest and the largest code.

    Args:
        bits: b from 2 to 8.
        signed: Whether there are negative codes.

    Raises:
        ValueError: If ``bits`` is not allowed.

    Examples:
        >>> lsq_bounds(2, signed=True), lsq_bounds(2, signed=False)
        ((-2, 1), (0, 3))
    """
    check_number("bits", bits, low=2, high=9, whole=True)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def lsq_step(x: Tensor, bits: int, signed: bool = True, dim: int | None = None) -> Tensor:
    r"""Return the step to start from.

    $$\alpha = \frac{2 \operatorname{mean} |x|}{\sqrt{Q_P}} \text{ with sign}, \quad
    \frac{4 \operatorname{mean} |x|}{\sqrt{Q_P}} \text{ without}$$

    Args:
        x: First inputs.
        bits: b from 2 to 8.
        signed: Whether there are negative codes.
        dim: Dimension whose indices have a step each; None for a single step.

    Returns:
        Steps of shape (indices,) or (1,), in fp32 or wider.

    Raises:
        ValueError: If ``bits`` is not allowed.

    Examples:
        >>> lsq_step(torch.tensor([[1.0, -3.0], [0.5, 0.5]]), bits=2, dim=0)
        tensor([4., 1.])
    """
    _, high = lsq_bounds(bits, signed)
    wide = x.detach().to(torch.promote_types(x.dtype, torch.float32)).abs()
    mean = wide.mean().reshape(1) if dim is None else wide.movedim(dim, 0).flatten(1).mean(1)
    step: Tensor = mean * ((2.0 if signed else 4.0) / high**0.5)
    return step


class _LSQ(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, step: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
        position = x / step
        return position.clamp(low, high).round_().mul_(step), position

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, step, ctx.low, ctx.high = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.shape = step.shape

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (position,) = ctx.saved_tensors
        clipped = position.clamp(ctx.low, ctx.high)
        inside = clipped == position
        grad_x = upstream * inside if ctx.needs_input_grad[0] else None
        grad_step = None
        if ctx.needs_input_grad[1]:
            slope = clipped.round().sub_(position * inside)
            grad_step = (upstream * slope).sum_to_size(ctx.shape)
        return grad_x, grad_step, None, None


def lsq(x: Tensor, step: Tensor, bits: int, signed: bool = True, dim: int | None = None) -> Tensor:
    r"""Quantize with a learned step, whose gradient is scaled by the number of values that share it.

    $$\hat x = \alpha \lfloor \operatorname{clamp}(x / \alpha, Q_N, Q_P) \rceil, \quad
    \frac{\partial \hat x}{\partial x} = [Q_N \le x / \alpha \le Q_P], \quad
    \frac{\partial \hat x}{\partial \alpha} = \frac{1}{\sqrt{m Q_P}} \begin{cases} \lfloor v \rceil - v & v = x / \alpha
    \text{ inside} \\ Q_N \text{ or } Q_P & \text{outside} \end{cases}$$

    The arithmetic is in fp32 or wider. A step below 1e-5 acts as 1e-5 and keeps its gradient.

    Args:
        x: Values of any shape.
        step: α, one per index of ``dim``, or a single one.
        bits: b from 2 to 8.
        signed: Whether there are negative codes.
        dim: Dimension whose indices have a step each; None for a single step.

    Returns:
        Quantized values of the shape and dtype of ``x``.

    Raises:
        ValueError: If ``bits`` is not allowed, or there are not as many steps as indices.

    Source: Esser et al. 2020, arXiv:1902.08153, in the form of Liu, Liu & Cheng 2023, arXiv:2302.02210.

    Examples:
        >>> lsq(torch.tensor([-9.0, 0.4, 0.6, 9.0]), torch.tensor([1.0]), bits=2)
        tensor([-2., 0., 1., 1.])
    """
    low, high = lsq_bounds(bits, signed)
    wide = torch.promote_types(x.dtype, torch.float32)
    own = step.to(wide)
    # the difference is zero and brings the gradient; a sum of both would miss 1e-5 by a rounding
    grown = torch.where(own < SMALLEST_STEP, SMALLEST_STEP + (own - own.detach()), own)
    shared = max(1, x.numel() // max(1, step.numel()))
    scaled = along(_ScaleGradient.apply(grown, (high * shared) ** -0.5), x, dim)  # type: ignore[no-untyped-call]
    values: Tensor = _LSQ.apply(x.to(wide), scaled, low, high)[0]  # type: ignore[no-untyped-call]
    return values.to(x.dtype)


def lsq_codes(x: Tensor, step: Tensor, bits: int, signed: bool = True, dim: int | None = None) -> CodedWeight:
    """Return the integers of the quantizer with a learned step.

    Args:
        x: Values of any shape.
        step: α, one per index of ``dim``, or a single one.
        bits: b from 2 to 8.
        signed: Whether there are negative codes.
        dim: Dimension whose indices have a step each; None for a single step.

    Returns:
        Codes and steps; values are code · step.

    Raises:
        ValueError: If ``bits`` is not allowed, or there are not as many steps as indices.

    Examples:
        >>> lsq_codes(torch.tensor([-9.0, 0.4, 0.6, 9.0]), torch.tensor([1.0]), bits=2).codes
        tensor([-2,  0,  1,  1], dtype=torch.int8)
    """
    low, high = lsq_bounds(bits, signed)
    wide = torch.promote_types(x.dtype, torch.float32)
    floored = step.detach().to(wide).clamp_min(SMALLEST_STEP)
    positions = (x.detach().to(wide) / along(floored, x, dim)).clamp_(low, high).round_()
    return CodedWeight(positions.to(torch.int8 if signed else torch.uint8), floored, 0.0, bits, dim)


class _ScaleGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, factor: float) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream * ctx.factor, None
