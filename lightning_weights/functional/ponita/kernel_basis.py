"""The functions of invariants that every layer's kernels are made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_weights.functional.ponita.gelu_linear import gelu_linear
from lightning_weights.functional.ponita.polynomials import monomials, polynomial_features
from lightning_weights.kernels.fiber_conv import basis as chunked


def kernel_basis(
    attributes: Tensor, parameters: Sequence[Tensor], *, degree: int, window: Tensor | None = None
) -> Tensor:
    r"""Compute basis functions of invariants: monomials through a network of two layers, times a window.

    $$\phi(a) = w \; \mathrm{GELU}(V_2 \, \mathrm{GELU}(V_1 \, p(a) + c_1) + c_2)$$

    On a CPU, where positions need no gradient, rows go in chunks: a monomial that occurs several times in p is computed
    once, its weights are added up, and nothing between a and φ is kept for the backward pass but monomials and what the
    last GELU was applied to. A thousand rows or less go at once, operation by operation.

    Args:
        attributes: a of shape (..., q).
        parameters: V₁ (H, q + ... + q^d), c₁ (H,), V₂ (B, H) and c₂ (B,).
        degree: Largest degree d of the monomials p.
        window: w of shape (..., 1), or ``None`` for 1.

    Returns:
        φ of shape (..., B).

    Source: Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> one = torch.ones(1, 1)
        >>> kernel_basis(torch.zeros(4, 1), (one, torch.zeros(1), one, torch.zeros(1)), degree=1).shape
        torch.Size([4, 1])
    """
    basis: Tensor
    if _in_cache(attributes, *parameters):
        factors, places = monomials(attributes.shape[-1], degree)
        pairs = [place for pair in factors for place in pair]
        operands = (attributes.flatten(0, -2), *parameters, degree, pairs, list(places))
        basis = _Basis.apply(*operands)[0]  # type: ignore[no-untyped-call]
        basis = basis.unflatten(0, attributes.shape[:-1])
    else:
        basis = _composed(attributes, *parameters, degree=degree)
    return basis if window is None else basis * window


class _Basis(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        attributes: Tensor,
        first: Tensor,
        first_bias: Tensor,
        second: Tensor,
        second_bias: Tensor,
        degree: int,
        factors: list[int],
        places: list[int],
    ) -> Any:
        return chunked.basis_op(attributes, first, first_bias, second, second_bias, factors, places)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)  # which would fill as much memory as the basis takes, for nothing
        *operands, ctx.degree, _, ctx.places = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*operands, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        attributes, *parameters, before, powers = ctx.saved_tensors
        if grad is None:
            return (None,) * 8
        slopes: tuple[Tensor, ...]
        # gradients that shall have gradients are those of the composition
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            composed = partial(_composed, attributes, degree=ctx.degree)
            slopes = torch.func.vjp(composed, *parameters)[1](grad)
        else:
            slopes = chunked.basis_backward_op(grad, before, powers, *parameters[:3], ctx.places)
        wanted = ctx.needs_input_grad[1:5]
        return None, *(slope if want else None for slope, want in zip(slopes, wanted, strict=True)), None, None, None


def _in_cache(attributes: Tensor, *parameters: Tensor) -> bool:
    kind = attributes.device.type
    usual = kind == "cpu" and not torch.is_autocast_enabled(kind) and attributes[..., 0].numel() > chunked.FEW
    return usual and not attributes.requires_grad and all(p.dtype == attributes.dtype for p in parameters)


def _composed(
    attributes: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor, *, degree: int
) -> Tensor:
    hidden = F.linear(polynomial_features(attributes, degree), first, first_bias)
    return F.gelu(gelu_linear(hidden, second, second_bias))
