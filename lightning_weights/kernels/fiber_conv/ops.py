"""Registration of the convolution and of its gradient, which can be differentiated as often as one likes.

The sum over edges is linear in features, basis and weight, and so are its three gradients in what they are made of:
every derivative of any order is again a sum over edges or a gradient of one.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_weights.kernels._op import exact_products, register, takes_triton
from lightning_weights.kernels.fiber_conv.eager import across, gather, gather_backward
from lightning_weights.kernels.fiber_conv.edges import SortedEdges
from lightning_weights.kernels.fiber_conv.reference import whole_basis

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the Triton kernels
EDGES = "Tensor senders, Tensor receivers, Tensor offsets, Tensor by_sender, Tensor sender_offsets, Tensor complete"
Slopes = tuple[Tensor | None, ...]


def _takes_triton(*tensors: Tensor | None) -> bool:
    given = [tensor for tensor in tensors if tensor is not None]
    exact = exact_products(*(tensor.dtype for tensor in given))
    return takes_triton(given[0].device.type, [(given, DTYPES)], exact_products=exact)


def _forward(
    features: Tensor, basis: Tensor, weight: Tensor, fiber: Tensor | None, bias: Tensor | None, *graph: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the result, and the sums over edges if orientations are contracted afterwards."""
    edges = SortedEdges(*graph)
    if _takes_triton(features, basis, weight, fiber, bias):
        from lightning_weights.kernels.fiber_conv.launch import launch_fiber_conv

        return launch_fiber_conv(features, whole_basis(basis, features, edges), weight, fiber, bias, edges)
    sums = gather(features, basis, weight, edges)
    wide_bias = None if bias is None else bias.to(sums.dtype)
    if fiber is not None:
        return across(fiber.to(sums.dtype), sums, wide_bias).to(features.dtype), sums
    result = sums if wide_bias is None else sums.add_(wide_bias)
    return result.to(features.dtype), features.new_empty(0, dtype=sums.dtype)


def _forward_fake(
    features: Tensor, basis: Tensor, weight: Tensor, fiber: Tensor | None, bias: Tensor | None, *graph: Tensor
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(features.dtype, torch.float32)
    kept = features.new_empty(0 if fiber is None else features.shape, dtype=wide)
    return features.new_empty(features.shape), kept


def _backward(
    grad: Tensor, features: Tensor, basis: Tensor, weight: Tensor, needed: list[bool], *graph: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    edges = SortedEdges(*graph)
    if _takes_triton(grad, features, basis, weight):
        from lightning_weights.kernels.fiber_conv.launch import launch_gather_backward

        whole = whole_basis(basis, features, edges)
        to_features, to_basis, to_weight = launch_gather_backward(grad, features, whole, weight, edges, needed)
        if needed[1] and whole is not basis:
            own, reversed_edges = to_basis.split(basis.shape[1], dim=1)
            to_basis = own.index_add(0, edges.by_sender, reversed_edges)
        return to_features, to_basis, to_weight
    return gather_backward(grad, features, basis, weight, edges, needed)


def _backward_fake(
    grad: Tensor, features: Tensor, basis: Tensor, weight: Tensor, needed: list[bool], *graph: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    features, basis, weight = (
        tensor.new_empty(tensor.shape if want else 0)
        for tensor, want in zip((features, basis, weight), needed, strict=True)
    )
    return features, basis, weight


_forward_op = register(
    "fiber_conv",
    f"(Tensor features, Tensor basis, Tensor weight, Tensor? fiber, Tensor? bias, {EDGES}) -> (Tensor, Tensor)",
    implementation=_forward,
    fake=_forward_fake,
)
_backward_op = register(
    "fiber_conv_backward",
    f"(Tensor grad, Tensor features, Tensor basis, Tensor weight, bool[] needed, {EDGES}) -> (Tensor, Tensor, Tensor)",
    implementation=_backward,
    fake=_backward_fake,
)


class FiberConv(torch.autograd.Function):
    """The convolution: result, and sums over edges, both differentiable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # one by one: without gradients, the compiler goes by the number of parameters
        features: Tensor,
        basis: Tensor,
        weight: Tensor,
        fiber: Tensor | None,
        bias: Tensor | None,
        senders: Tensor,
        receivers: Tensor,
        offsets: Tensor,
        by_sender: Tensor,
        sender_offsets: Tensor,
        complete: Tensor,
    ) -> Any:
        graph = SortedEdges(senders, receivers, offsets, by_sender, sender_offsets, complete)
        return _forward_op(features, basis, weight, fiber, bias, *graph)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        features, basis, weight, fiber, bias, *graph = inputs
        ctx.save_for_backward(features, basis, weight, fiber, bias, output[1], *graph)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        features, basis, weight, fiber, bias, sums, *graph = ctx.saved_tensors
        grad, to_fiber, to_bias = grads[0], None, None
        if grad is not None:
            grad = grad.to(sums.dtype)
            if ctx.needs_input_grad[4]:
                to_bias = grad.sum((0, 1)).to(bias.dtype)
            if fiber is not None:
                if ctx.needs_input_grad[3]:
                    to_fiber = _product_over_points(sums, grad).to(fiber.dtype)
                grad = _across(fiber.to(grad.dtype).transpose(0, 1), grad)
        if fiber is not None and grads[1] is not None:  # the sums themselves were differentiated
            grad = grads[1] if grad is None else grad + grads[1]
        slopes = _gather_backward(grad, features, basis, weight, ctx.needs_input_grad[:3], graph)
        return (*slopes, to_fiber, to_bias, *(None for _ in graph))


# torch asks for it at every call, and finding it out takes as long as a small sum
FiberConv.forward.__signature__ = inspect.signature(FiberConv.forward)  # type: ignore[attr-defined]


class GatherBackward(torch.autograd.Function):
    """Gradients of the sums over edges, each linear in two of features, basis and weight and in the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, features: Tensor, basis: Tensor, weight: Tensor, needed: list[bool], *graph: Tensor
    ) -> Any:
        return _backward_op(grad, features, basis, weight, needed, *graph)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        grad, features, basis, weight, ctx.needed, *graph = inputs
        ctx.save_for_backward(grad, features, basis, weight, *graph)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> Any:
        grad, features, basis, weight, *graph = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:4]
        given = [slope if need else None for slope, need in zip(outer, ctx.needed, strict=True)]
        found: list[Tensor | None] = [None] * 4
        for place, slope in enumerate(given):
            if slope is None:
                continue
            operands = [features, basis, weight]
            operands[place] = slope.to(operands[place].dtype)
            others = [wanted[1 + index] and index != place for index in range(3)]
            slopes = _gather_backward(grad, operands[0], operands[1], operands[2], others, graph)
            found[1:] = [_sum(old, new) for old, new in zip(found[1:], slopes, strict=True)]
            if wanted[0]:
                sums, _ = FiberConv.apply(*operands, None, None, *graph)  # type: ignore[no-untyped-call]
                found[0] = _sum(found[0], sums.to(grad.dtype))
        return (*found, None, *(None for _ in graph))


def _gather_backward(
    grad: Tensor | None, features: Tensor, basis: Tensor, weight: Tensor, needed: Sequence[bool], graph: list[Tensor]
) -> Slopes:
    if grad is None or not any(needed):
        return (None, None, None)
    if _is_differentiated():
        slopes = GatherBackward.apply(grad, features, basis, weight, list(needed), *graph)  # type: ignore[no-untyped-call]
    else:
        slopes = _backward_op(grad, features, basis, weight, list(needed), *graph)
    return tuple(slope if want else None for slope, want in zip(slopes, needed, strict=True))


def _is_differentiated() -> bool:
    # compilers, which differentiate once only, trace backward passes with gradients on
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _across(fiber: Tensor, features: Tensor) -> Tensor:
    if _is_differentiated() or features.device.type != "cpu":
        return torch.einsum("opc,noc->npc", fiber, features) / features.shape[1]
    return across(fiber, features)


def _product_over_points(sums: Tensor, grad: Tensor) -> Tensor:
    """Return the mean over orientations of products over all points: the gradient of F."""
    # whole transposes are far cheaper than permutations of three axes, and their views are as good to the product
    left, right = (x.flatten(1).t().contiguous().unflatten(0, x.shape[1:]).transpose(0, 1) for x in (sums, grad))
    return torch.bmm(left, right.transpose(1, 2)).permute(1, 2, 0) / sums.shape[1]


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if old is None else old if new is None else old + new
