"""A linear layer of GELU's values, which keeps what GELU was applied to and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def gelu_linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    r"""Apply GELU and a linear layer, without keeping the values between them for the backward pass.

    $$y = W \, \mathrm{GELU}(x) + b$$

    The backward pass applies GELU anew. It can be differentiated as often as one likes. Autocast applies as to a linear
    layer.

    Args:
        inputs: x of shape (..., in).
        weight: W of shape (out, in).
        bias: b of shape (out,).

    Returns:
        y of shape (..., out).

    Examples:
        >>> gelu_linear(torch.zeros(2, 3), torch.ones(1, 3), torch.ones(1)).flatten()
        tensor([1., 1.])
    """
    kind = inputs.device.type
    if torch.compiler.is_compiling():  # which decides itself what it keeps
        return F.linear(F.gelu(inputs), weight, bias)
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        inputs, weight, bias = inputs.to(dtype), weight.to(dtype), bias.to(dtype)
    with torch.autocast(kind, enabled=False):
        return _GELULinear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call, no-any-return]


class _GELULinear(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(F.gelu(inputs), weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        inputs, weight, _ = ctx.saved_tensors
        to_inputs = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_inputs = torch.ops.aten.gelu_backward(grad @ weight, inputs)
        if ctx.needs_input_grad[1]:
            to_weight = _rows(grad).t() @ _rows(F.gelu(inputs))
        if ctx.needs_input_grad[2]:
            to_bias = _rows(grad).sum(0)
        return to_inputs, to_weight, to_bias


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])
