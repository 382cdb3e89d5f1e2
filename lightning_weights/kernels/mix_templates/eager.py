"""Mixing and its gradients without Triton, in as few passes over templates and weights as PyTorch allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()  # in an exported program there is nothing above the operator to switch gradients off
def weights(templates: Sequence[Tensor], coefficients: Tensor, sets: Sequence[int], columns: int) -> Tensor:
    """Return the weight, computed in the dtype of the coefficients, of shape (rows · o, columns · i).

    Sums go template by template straight into their block, so that a block has the same bits wherever it stands.

    Args:
        templates: One or two sets of shape (K, o, i).
        coefficients: Of shape (blocks, K).
        sets: Which set each block is mixed from.
        columns: Blocks beside each other.
    """
    _, o, i = templates[0].shape
    parts = [part.to(coefficients.dtype).unbind() for part in templates]
    # numbers on the CPU, where they are faster; elsewhere tensors, for which nobody has to wait
    on_cpu = coefficients.device.type == "cpu"
    numbers = coefficients.tolist() if on_cpu else [row.unbind() for row in coefficients]
    if len(sets) == 1:
        return _mixed(parts[0], numbers[0], on_cpu, None)
    weight = coefficients.new_empty(len(sets) // columns, o, columns, i)
    blocks = [block for row in weight.transpose(1, 2).unbind() for block in row.unbind()]
    for block, factors, which in zip(blocks, numbers, sets, strict=True):
        _mixed(parts[which], factors, on_cpu, block)
    return weight.view(-1, columns * i)


def _mixed(templates: Sequence[Tensor], factors: Sequence[Any], on_cpu: bool, out: Tensor | None) -> Tensor:
    block = torch.mul(templates[0], factors[0], out=out)
    for template, factor in zip(templates[1:], factors[1:], strict=True):
        if on_cpu:
            block.add_(template, alpha=factor)
        else:
            block.addcmul_(template, factor)
    return block


def gradients(
    templates: Sequence[Tensor], coefficients: Tensor, upstream: Tensor, sets: Sequence[int], columns: int, sums: bool
) -> tuple[list[Tensor], Tensor]:
    """Return the gradients to the sets of templates and to the coefficients; without ``sums`` the latter are zero.

    Args:
        templates: As of ``weights``, as are the coefficients, sets and columns.
        coefficients: Of shape (blocks, K).
        upstream: Gradient to the weight, of its shape.
        sets: Which set each block is mixed from.
        columns: Blocks beside each other.
        sums: Whether coefficients get gradients.
    """
    count, o, i = templates[0].shape
    blocks = upstream.to(coefficients.dtype)
    if columns > 1:
        blocks = blocks.view(-1, o, columns, i).transpose(1, 2)
    blocks = blocks.reshape(len(sets), o * i)
    grad_coefficients = torch.zeros_like(coefficients)
    grads = []
    for which, part in enumerate(templates):
        rows = [block for block, used in enumerate(sets) if used == which]
        step = rows[1] - rows[0] if len(rows) > 1 else 1
        chosen = slice(rows[0], rows[-1] + 1, step)  # a view: a set has one block, or two
        mine, factors = blocks[chosen], coefficients[chosen]
        grads.append(torch.mm(factors.t(), mine).view(count, o, i).to(part.dtype))
        if sums:
            grad_coefficients[chosen] = torch.mm(mine, part.reshape(count, -1).to(coefficients.dtype).t())
    return grads, grad_coefficients
