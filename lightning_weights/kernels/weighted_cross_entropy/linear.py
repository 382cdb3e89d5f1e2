"""The same losses of hidden states and the matrix behind them: logits exist for a few rows at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from lightning_weights.kernels._once import differentiable_once
from lightning_weights.kernels._op import register
from lightning_weights.kernels.weighted_cross_entropy.eager import counted_rows
from lightning_weights.kernels.weighted_cross_entropy.rows import row_gradients, row_losses, row_losses_and_gradients


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int, chunk: int, frozen: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses and, row by row, their gradients if the matrix is frozen, else what the backward pass needs."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    losses, normalizers = (torch.zeros(len(hidden), dtype=wide, device=hidden.device) for _ in range(2))
    gradient = _zeros_like(hidden) if frozen else hidden.new_empty(0)
    for rows in counted_rows(labels, ignore_index, chunk):
        logits, label = linear(hidden[rows], weight, bias), labels[rows]
        if frozen:
            losses[rows] = row_losses_and_gradients(logits, label, ignore_index, logits)
            gradient[rows] = logits @ weight
        else:
            losses[rows], normalizers[rows] = row_losses(logits, label, ignore_index)
    return losses, normalizers, gradient


def _zeros_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.zeros_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)


def _forward_fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int, chunk: int, frozen: bool
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    kept = torch.empty_like(hidden, memory_format=torch.contiguous_format) if frozen else hidden.new_empty(0)
    rows = hidden.shape[0]  # len() would make a symbol a number
    return hidden.new_empty(rows, dtype=wide), hidden.new_empty(rows, dtype=wide), kept


def _backward(
    upstream: Tensor,
    normalizers: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the logits again, a chunk at a time, and what they give to hidden states, matrix and bias."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    of_hidden, of_weight = _zeros_like(hidden), _zeros_like(weight, wide)
    of_bias = of_weight.new_zeros(0 if bias is None else len(bias))
    for rows in counted_rows(labels, ignore_index, chunk):
        states = hidden[rows]
        logits = linear(states, weight, bias)
        row_gradients(upstream[rows], normalizers[rows], logits, labels[rows], ignore_index, logits)
        of_hidden[rows] = logits @ weight
        if wide == weight.dtype:
            of_weight.addmm_(logits.t(), states)
        else:
            of_weight += logits.t() @ states  # added up in fp32
        if bias is not None:
            of_bias += logits.sum(dim=0, dtype=wide)
    return of_hidden, of_weight.to(weight.dtype), of_bias.to(weight.dtype)


def _backward_fake(
    upstream: Tensor, normalizers: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    contiguous = torch.contiguous_format
    of_bias = weight.new_empty(0 if bias is None else weight.shape[0])
    return (
        torch.empty_like(hidden, memory_format=contiguous),
        torch.empty_like(weight, memory_format=contiguous),
        of_bias,
    )


_forward_op = register(
    "linear_cross_entropy",
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, int ignore_index, int chunk, bool frozen) "
    "-> (Tensor, Tensor, Tensor)",
    implementation=_forward,
    fake=_forward_fake,
)
_backward_op = differentiable_once(
    register(
        "linear_cross_entropy_backward",
        "(Tensor upstream, Tensor normalizers, Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, "
        "int ignore_index, int chunk) -> (Tensor, Tensor, Tensor)",
        implementation=_backward,
        fake=_backward_fake,
    )
)


class LinearRowLosses(torch.autograd.Function):
    """Losses of rows of hidden states, (R, H), and of the matrix, (V, H), that makes logits of them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        options: tuple[int, int, bool],
    ) -> Any:
        return _forward_op(hidden, weight, bias, labels, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        hidden, weight, bias, labels, (ctx.ignore_index, ctx.chunk, ctx.frozen) = inputs
        _, normalizers, kept = output
        ctx.mark_non_differentiable(normalizers, kept)
        ctx.set_materialize_grads(False)
        ctx.has_bias = bias is not None
        saved = (kept,) if ctx.frozen else (normalizers, hidden, weight, labels, *((bias,) if ctx.has_bias else ()))
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        upstream = grads[0]
        if upstream is None:
            return None, None, None, None, None
        if ctx.frozen:
            kept = ctx.saved_tensors[0]
            return (upstream[:, None] * kept).to(kept.dtype), None, None, None, None
        normalizers, hidden, weight, labels, *bias = ctx.saved_tensors
        arguments = (normalizers, hidden, weight, bias[0] if bias else None, labels, ctx.ignore_index, ctx.chunk)
        of_hidden, of_weight, of_bias = _backward_op(upstream, *arguments)
        needed = ctx.needs_input_grad
        return (
            of_hidden if needed[0] else None,
            of_weight if needed[1] else None,
            of_bias if needed[2] and ctx.has_bias else None,
            None,
            None,
        )
