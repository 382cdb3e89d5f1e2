"""Basis functions of invariants on the CPU, and their parameters' gradients: rows in chunks that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_weights.kernels._op import register

CHUNK = 1 << 18  # entries of the hidden layer that exist at once
FEW = 1 << 10  # rows up to which calls cost more than chunks save
_gelu = torch.ops.aten.gelu.out
_gelu_backward = torch.ops.aten.gelu_backward.grad_input
Tensors = tuple[Tensor, ...]


def _forward(
    attributes: Tensor,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
    factors: list[int],
    places: list[int],
) -> Tensors:
    """Return basis functions of every row, what the last GELU was applied to, and monomials."""
    before = attributes.new_empty(len(attributes), len(second))
    basis, folded = torch.empty_like(before), _folded(first, first_bias, places)
    monomials = _monomials(attributes, len(folded), factors)
    for some, own, hidden, _ in _chunks(monomials, folded):
        torch.mm(own.t(), folded, out=hidden)
        torch.addmm(second_bias, _gelu(hidden, out=hidden), second.t(), out=before[some])
        _gelu(before[some], out=basis[some])
    return basis, before, monomials


def _backward(
    grad: Tensor,
    before: Tensor,
    monomials: Tensor,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    places: list[int],
) -> Tensors:
    """Return gradients of both weights and biases."""
    grad, folded = grad.contiguous(), _folded(first, first_bias, places)
    to_folded, to_second, to_second_bias = map(torch.zeros_like, (folded, second, second[:, 0]))
    for some, own, hidden, other in _chunks(monomials, folded):
        torch.mm(own.t(), folded, out=hidden)
        slope = torch.ops.aten.gelu_backward(grad[some], before[some])
        to_second.addmm_(slope.t(), _gelu(hidden, out=other))
        to_second_bias.add_(slope.sum(0))
        torch.mm(slope, second, out=other)
        to_folded.addmm_(own, _gelu_backward(other, hidden, grad_input=other))
    return to_folded[places].t().contiguous(), to_folded[-1].clone(), to_second, to_second_bias


def _folded(first: Tensor, first_bias: Tensor, places: list[int]) -> Tensor:
    """Return a row of weights for each different monomial, and at last the bias, as that of the monomial 1."""
    folded = first.new_zeros(max(places) + 2, len(first))
    folded[-1] = first_bias
    return folded.index_add_(0, torch.tensor(places), first.t())


def _monomials(attributes: Tensor, size: int, factors: list[int]) -> Tensor:
    """Return every different monomial, with a last one of 1."""
    count, given = attributes.shape
    # a monomial's values in a row, for products with the transpose: the gradient's takes a fraction of the time so
    monomials = attributes.new_ones(size, count)
    monomials[:given] = attributes.t()
    for place, (left, right) in enumerate(zip(factors[::2], factors[1::2], strict=True), start=given):
        torch.mul(monomials[left], monomials[right], out=monomials[place])
    return monomials


def _chunks(monomials: Tensor, folded: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Yield rows, their monomials, and memory for two hidden layers."""
    count, width = monomials.shape[1], folded.shape[1]
    step = max(1, CHUNK // max(1, width))
    memory = monomials.new_empty(2, min(step, count), width)
    for start in range(0, count, step):
        some = slice(start, min(start + step, count))
        yield some, monomials[:, some], *memory[:, : some.stop - start]


PARAMETERS = "Tensor first, Tensor first_bias, Tensor second"
basis_op = register(
    "fiber_conv_basis",
    f"(Tensor attributes, {PARAMETERS}, Tensor second_bias, int[] factors, int[] places) -> (Tensor, Tensor, Tensor)",
    implementation=_forward,
    fake=lambda attributes, first, first_bias, second, second_bias, factors, places: (
        *(attributes.new_empty(len(attributes), len(second)) for _ in range(2)),
        attributes.new_empty(max(places) + 2, len(attributes)),
    ),
)
basis_backward_op = register(
    "fiber_conv_basis_backward",
    f"(Tensor grad, Tensor before, Tensor monomials, {PARAMETERS}, int[] places) -> (Tensor, Tensor, Tensor, Tensor)",
    implementation=_backward,
    fake=lambda grad, before, monomials, first, first_bias, second, places: tuple(
        first.new_empty(shape) for shape in (first.shape, first_bias.shape, second.shape, second.shape[:1])
    ),
)
