"""Registration of the margin head, and its public function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_weights.kernels._once import differentiable_once
from lightning_weights.kernels._op import register, takes_triton
from lightning_weights.kernels.interval_affine.checks import check_operands
from lightning_weights.kernels.interval_affine.eager_margins import margins_forward, other_classes, widths_backward

DTYPES = (torch.float32,)  # of the Triton kernels
MarginGradients = tuple[Tensor, Tensor, Tensor, Tensor]


def _forward(
    center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, sound: bool
) -> Tensor:
    if takes_triton(center.device.type, [((center, radius, weight), DTYPES)]):
        from lightning_weights.kernels.interval_affine.launch import launch_margins

        return launch_margins(center, radius, weight, bias, labels, sound)
    return margins_forward(center, radius, weight, bias, labels, sound)


def _forward_fake(center: Tensor, radius: Tensor, weight: Tensor, *rest: object) -> Tensor:
    return center.new_empty((center.shape[0], weight.shape[0] - 1))


def _backward(
    grad: Tensor, center: Tensor, radius: Tensor, weight: Tensor, labels: Tensor, needed: list[bool]
) -> MarginGradients:
    index = other_classes(labels, len(weight))
    full = grad.new_zeros((len(labels), len(weight))).scatter_(1, index, grad)
    if takes_triton(center.device.type, [((center, radius, weight), DTYPES)]):
        from lightning_weights.kernels.interval_affine.launch import launch_margins_backward

        grad_radius, grad_weight = launch_margins_backward(full, radius, weight, labels, needed[1], needed[2])
    else:
        grad_radius, grad_weight = widths_backward(full, radius, weight, labels, needed[1], needed[2])
    logits = full.neg_().scatter_(1, labels[:, None], grad.sum(1, keepdim=True))  # gradient of Wc + b
    return (
        logits @ weight if needed[0] else grad.new_empty(0),
        grad_radius,
        grad_weight.addmm_(logits.t(), center) if needed[2] else grad.new_empty(0),
        logits.sum(0) if needed[3] else grad.new_empty(0),
    )


def _backward_fake(
    grad: Tensor, center: Tensor, radius: Tensor, weight: Tensor, labels: Tensor, needed: list[bool]
) -> MarginGradients:
    shapes = (center.shape, radius.shape, weight.shape, weight.shape[:1])
    return tuple(center.new_empty(shape if want else 0) for shape, want in zip(shapes, needed, strict=True))  # type: ignore[return-value]


_forward_op = register(
    "interval_margins",
    "(Tensor center, Tensor radius, Tensor weight, Tensor? bias, Tensor labels, bool sound) -> Tensor",
    implementation=_forward,
    fake=_forward_fake,
)
_backward_op = differentiable_once(
    register(
        "interval_margins_backward",
        "(Tensor grad, Tensor center, Tensor radius, Tensor weight, Tensor labels, bool[] needed) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
        implementation=_backward,
        fake=_backward_fake,
    )
)


class _Margins(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _forward_op(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        center, radius, weight, _, labels, _ = inputs
        ctx.save_for_backward(center, radius, weight, labels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        needed = list(ctx.needs_input_grad[:4])
        gradients = _backward_op(grad, *ctx.saved_tensors, needed)
        return (*(g if wanted else None for g, wanted in zip(gradients, needed, strict=True)), None, None)


def interval_margins(
    center: Tensor,
    radius: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    sound: bool = False,
) -> Tensor:
    r"""Bound from below the margins of the true class over all others, for intervals in front of the last layer.

    $$m_{nj} = (w_{y_n} - w_j) c_n + b_{y_n} - b_j - |w_{y_n} - w_j| r_n, \qquad j \neq y_n$$

    The absolute value is taken of the rows w_y - w_j, which is tighter than subtracting bounds of logits. The rows are
    built a tile at a time, in the backward pass again, and never for all samples and classes at once. Differentiable
    once in all tensors; sign(0) = 0.

    Args:
        center: Centres c (N, in).
        radius: Half-widths r ≥ 0 (N, in).
        weight: W (K, in), K ≥ 2.
        bias: b (K,), or None.
        labels: True classes y (N,), int64.
        sound: Lower the margins by more than all rounding errors of the call, as in [`interval_affine`][].

    Returns:
        Margins (N, K-1); the classes j ≠ y ascend. A sample is verified if all of its row is positive.

    Raises:
        ValueError: If shapes, dtypes or labels do not fit, or if ``sound`` is asked for while products run in TF32.
        ShardedParameterError: If the weight is sharded.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Examples:
        >>> c, r = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.1, 0.1]])
        >>> interval_margins(c, r, torch.eye(2), None, torch.tensor([0]))
        tensor([[0.8000]])
    """
    check_operands(center, radius, weight, bias=bias)
    if center.dim() != 2 or labels.shape != center.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"center has shape {tuple(center.shape)} and labels are {labels.dtype} of shape {tuple(labels.shape)}; "
            f"allowed are (N, in) and int64 of (N,)"
        )
    if len(weight) < 2:
        raise ValueError(f"weight has {len(weight)} rows; a margin needs at least two classes")
    return _Margins.apply(center, radius, weight, bias, labels, sound)  # type: ignore[no-any-return, no-untyped-call]
