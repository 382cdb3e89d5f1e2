"""Inputs and errors of few bits, as pulse widths encode them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def _rounded(x: Tensor, bits: int) -> Tensor:
    """Round to the 2^bits - 1 values between the largest magnitude and its negative that lie evenly."""
    if not x.numel():
        return x
    steps = 2 ** (bits - 1) - 1
    step = (x.detach().abs().max() / steps).clamp(min=torch.finfo(x.dtype).tiny)
    rounded: Tensor = (x / step).round() * step
    return rounded


class _Inputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, bits: int) -> Tensor:
        return _rounded(x, bits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Errors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        ctx.bits = bits
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _rounded(grads[0], ctx.bits), None


def quantize_inputs(x: Tensor, bits: int) -> Tensor:
    """Round what goes into an array to 2^bits - 1 evenly spaced values; gradients pass through.

    Args:
        x: Inputs; the largest magnitude in the tensor is the largest value.
        bits: At least 2, the sign included.

    Examples:
        >>> quantize_inputs(torch.tensor([1.0, 0.4, -0.1]), 3)
        tensor([1.0000, 0.3333, -0.0000])
    """
    rounded: Tensor = _Inputs.apply(x, bits)  # type: ignore[no-untyped-call]
    return rounded


def quantize_errors(x: Tensor, bits: int) -> Tensor:
    """Return x; its gradient is rounded like the inputs of [`quantize_inputs`][].

    Args:
        x: Outputs of an array.
        bits: At least 2, the sign included.

    Examples:
        >>> x = torch.zeros(3, requires_grad=True)
        >>> quantize_errors(x, 3).backward(torch.tensor([1.0, 0.4, -0.1]))
        >>> x.grad
        tensor([1.0000, 0.3333, -0.0000])
    """
    same: Tensor = _Errors.apply(x, bits)  # type: ignore[no-untyped-call]
    return same
