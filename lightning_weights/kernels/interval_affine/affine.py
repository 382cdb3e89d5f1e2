"""Registration of interval propagation through an affine layer, and its public function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_weights.kernels._once import differentiable_once
from lightning_weights.kernels._op import exact_products, register, takes_triton
from lightning_weights.kernels.interval_affine.checks import check_operands
from lightning_weights.kernels.interval_affine.eager import (
    Results,
    affine_forward,
    epilogue_backward,
    product_backward,
    scale_backward,
)
from lightning_weights.kernels.interval_affine.reference import IntervalAffine

DTYPES = (torch.float32,)  # of the Triton kernels


def _forward(
    center: Tensor,
    radius: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    sound: bool,
) -> Results:
    exact = sound or exact_products(torch.float32)
    if takes_triton(center.device.type, [((center, radius, weight), DTYPES)], exact_products=exact):
        from lightning_weights.kernels.interval_affine.launch import launch_affine

        return launch_affine(center, radius, weight, bias, scale, shift, relu, sound)
    return affine_forward(center, radius, weight, bias, scale, shift, relu, sound)


def _forward_fake(
    center: Tensor,
    radius: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    sound: bool,
) -> Results:
    shape = (center.shape[0], weight.shape[0])
    behind, raw = shape if relu else (0,), (0,) if scale is None else shape
    return tuple(center.new_empty(size) for size in (shape, shape, (8,), behind, behind, raw))  # type: ignore[return-value]


def _backward(
    grad_pre_center: Tensor | None,
    grad_pre_radius: Tensor | None,
    grad_sums: Tensor | None,
    grad_center: Tensor | None,
    grad_radius: Tensor | None,
    center: Tensor,
    radius: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    pre_center: Tensor,
    pre_radius: Tensor,
    raw: Tensor,
    needed: list[bool],
) -> Results:
    grads = (grad_pre_center, grad_pre_radius, grad_sums, grad_center, grad_radius)
    if takes_triton(center.device.type, [((center, radius, weight), DTYPES)]):
        from lightning_weights.kernels.interval_affine.launch import launch_epilogue_backward

        grad_c, grad_r, vectors = launch_epilogue_backward(grads, pre_center, pre_radius, scale, raw)
    else:
        grad_c, grad_r = epilogue_backward(grads, pre_center, pre_radius)
        vectors = scale_backward(grad_c, grad_r, scale, raw, pre_radius)
    matrices = product_backward(grad_c, grad_r, center, radius, weight, needed[:3])
    # Copies, since the results of an operator must not share memory.
    wanted = [vector.clone() if want else vector.new_empty(0) for vector, want in zip(vectors, needed[3:], strict=True)]
    return (*matrices, *wanted)  # type: ignore[return-value]


def _backward_fake(*arguments: Any) -> Results:
    center, radius, weight, needed = *arguments[5:8], arguments[-1]
    vector = weight.shape[:1]
    shapes = (center.shape, radius.shape, weight.shape, vector, vector, vector)
    return tuple(center.new_empty(shape if want else 0) for shape, want in zip(shapes, needed, strict=True))


_forward_op = register(
    "interval_affine",
    "(Tensor center, Tensor radius, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, bool relu, bool sound) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    implementation=_forward,
    fake=_forward_fake,
)
_backward_op = differentiable_once(
    register(
        "interval_affine_backward",
        "(Tensor? grad_pre_center, Tensor? grad_pre_radius, Tensor? grad_sums, Tensor? grad_center, "
        "Tensor? grad_radius, Tensor center, Tensor radius, Tensor weight, Tensor? scale, Tensor pre_center, "
        "Tensor pre_radius, Tensor raw, bool[] needed) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        implementation=_backward,
        fake=_backward_fake,
    )
)


class _Affine(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _forward_op(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        center, radius, weight, _, scale = inputs[:5]
        pre_center, pre_radius, *_, raw = output
        ctx.save_for_backward(center, radius, weight, scale, pre_center, pre_radius, raw)
        ctx.set_materialize_grads(False)
        ctx.relu = inputs[6]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        grads = grads[:5] if ctx.relu else (*grads[:3], None, None)
        needed = list(ctx.needs_input_grad[:6])
        gradients = _backward_op(*grads, *ctx.saved_tensors, needed)
        return (*(g if wanted else None for g, wanted in zip(gradients, needed, strict=True)), None, None)


def interval_affine(
    center: Tensor,
    radius: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    sound: bool = False,
) -> IntervalAffine:
    r"""Propagate intervals through an affine layer, BatchNorm and ReLU, with the sums that regularisers need.

    $$c' = a \odot (W c + b) + s, \qquad r' = |a| \odot (|W| r), \qquad
    [l, u] = \mathrm{relu}([c' - r', c' + r'])$$

    One load of each weight serves both products, and everything behind them happens before the result is stored.
    Differentiable once in all tensors and through all results; sign(0) = 0, and the sets A and I of the sums are
    constants. Works in fp32 and fp64; autocast does not reach it.

    Args:
        center: Centres c (..., in).
        radius: Half-widths r ≥ 0 (..., in).
        weight: W (out, in).
        bias: b (out,).
        scale: Factor a (out,) of the affine map behind the layer, BatchNorm's γ/√(v + ε). May be negative or zero.
        shift: Summand s (out,) of that map, BatchNorm's β - m·a; given if and only if ``scale`` is.
        relu: Whether a ReLU follows.
        sound: Round half-widths up by more than all rounding errors of the call, in·2⁻²⁴·(|W|(|c| + r) + |b|) and a
            little more, so that the intervals contain what exact arithmetic gives. For certificates, not for training:
            the added width is a constant for autograd.

    Returns:
        Intervals behind and in front of the ReLU, and sums over the pre-activations.

    Raises:
        ValueError: If shapes or dtypes do not fit, or if ``sound`` is asked for while products run in TF32 or bf16.
        ShardedParameterError: If the weight is sharded.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Examples:
        >>> c, r, w = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, -2.0]])
        >>> out = interval_affine(c, r, w, relu=True)
        >>> out.pre_center.item(), out.pre_radius.item(), out.center.item(), out.radius.item()
        (1.0, 1.5, 1.25, 1.25)
    """
    check_operands(center, radius, weight, bias=bias, scale=scale, shift=shift)
    rows = (tensor.reshape(-1, weight.shape[1]) for tensor in (center, radius))
    results = _Affine.apply(*rows, weight, bias, scale, shift, relu, sound)  # type: ignore[no-untyped-call]
    shape = (*center.shape[:-1], weight.shape[0])
    pre_center, pre_radius = results[0].reshape(shape), results[1].reshape(shape)
    if not relu:
        return IntervalAffine(pre_center, pre_radius, pre_center, pre_radius, results[2])
    return IntervalAffine(results[3].reshape(shape), results[4].reshape(shape), pre_center, pre_radius, results[2])
