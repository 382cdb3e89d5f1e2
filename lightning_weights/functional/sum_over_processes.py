"""Sums over the processes of a group that gradients pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, dist.ProcessGroup | None], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grad, ctx.group), None  # type: ignore[no-untyped-call]


def sum_over_processes(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum a tensor over processes; its gradient is the sum of all processes' gradients.

    Args:
        tensor: This process's part, of the same shape everywhere.
        group: The processes; None: all of them.

    Returns:
        The sum, the same on every process.
    """
    return _Sum.apply(tensor, group)  # type: ignore[no-untyped-call, no-any-return]
