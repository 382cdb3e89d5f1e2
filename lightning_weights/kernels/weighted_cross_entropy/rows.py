"""The operator that turns rows of logits into losses, and its gradient, on whatever device they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_weights.kernels._once import differentiable_once
from lightning_weights.kernels._op import kernel_mode, register, takes_triton
from lightning_weights.kernels.weighted_cross_entropy import eager

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # logits of the Triton kernels


def row_losses(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Compute the loss of every row and log Σ exp of its logits, by kernel or eagerly."""
    check_labels(labels, logits.shape[1], ignore_index)
    if takes_triton(logits.device.type, [([logits], DTYPES)]):
        from lightning_weights.kernels.weighted_cross_entropy.kernel import launch_row_losses

        return launch_row_losses(logits, labels, ignore_index)
    return eager.row_losses(logits, labels, ignore_index)


def row_gradients(
    upstream: Tensor, normalizers: Tensor, logits: Tensor, labels: Tensor, ignore_index: int, gradient: Tensor
) -> Tensor:
    """Write the gradient of Σ upstream · loss to ``gradient``, which may be the logits themselves, and return it."""
    arguments = (upstream, normalizers, logits, labels, ignore_index, gradient)
    if takes_triton(logits.device.type, [([logits], DTYPES)]):
        from lightning_weights.kernels.weighted_cross_entropy.kernel import launch_row_gradients

        return launch_row_gradients(*arguments)
    return eager.row_gradients(*arguments)


def row_losses_and_gradients(logits: Tensor, labels: Tensor, ignore_index: int, gradient: Tensor) -> Tensor:
    """Return the loss of every row, and write its gradient to ``gradient``, which may be the logits themselves."""
    if logits.device.type == "cpu" and kernel_mode() != "triton":
        check_labels(labels, logits.shape[1], ignore_index)
        return eager.losses_and_gradients(logits, labels, ignore_index, gradient)
    losses, normalizers = row_losses(logits, labels, ignore_index)
    row_gradients(torch.ones_like(losses), normalizers, logits, labels, ignore_index, gradient)
    return losses


def check_labels(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Refuse labels outside the classes, where looking at them makes nobody wait."""
    # Elsewhere the loss of a sample with such a label is NaN.
    if labels.device.type == "cpu" and labels.numel():
        low, high = (int(value) for value in torch.where(labels == ignore_index, 0, labels).aminmax())
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels has values from {low} to {high}; allowed are 0 to {classes - 1} for logits of {classes} "
                f"classes, and {ignore_index} for what is not predicted"
            )


def _forward_fake(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(logits.dtype, torch.float32)
    rows = logits.shape[0]  # len() would make a symbol a number
    return logits.new_empty(rows, dtype=wide), logits.new_empty(rows, dtype=wide)


def _backward(upstream: Tensor, normalizers: Tensor, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    return row_gradients(upstream, normalizers, logits, labels, ignore_index, gradient)


def _backward_fake(upstream: Tensor, normalizers: Tensor, logits: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _forward_kept(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    return row_losses_and_gradients(logits, labels, ignore_index, gradient), gradient


def _forward_kept_fake(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty(logits.shape[0], dtype=wide), _backward_fake(logits, logits, logits)


_forward_op = register(
    "weighted_cross_entropy",
    "(Tensor logits, Tensor labels, int ignore_index) -> (Tensor, Tensor)",
    implementation=row_losses,
    fake=_forward_fake,
)
_forward_kept_op = register(
    "weighted_cross_entropy_kept",
    "(Tensor logits, Tensor labels, int ignore_index) -> (Tensor, Tensor)",
    implementation=_forward_kept,
    fake=_forward_kept_fake,
)
_backward_op = differentiable_once(
    register(
        "weighted_cross_entropy_backward",
        "(Tensor upstream, Tensor normalizers, Tensor logits, Tensor labels, int ignore_index) -> Tensor",
        implementation=_backward,
        fake=_backward_fake,
    )
)


class RowLosses(torch.autograd.Function):
    """Losses of rows of logits, (R, V), whose gradient is computed from the logits when its weights are known."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, labels: Tensor, ignore_index: int) -> Any:
        return _forward_op(logits, labels, ignore_index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        logits, labels, ctx.ignore_index = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], logits, labels)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream[0] is None:
            return None, None, None
        return _backward_op(upstream[0], *ctx.saved_tensors, ctx.ignore_index), None, None


class KeptRowLosses(torch.autograd.Function):
    """The same on CPUs, where powers are dear: what they give is kept, and becomes the gradient when it is weighted."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        losses: Tensor
        losses, ctx.kept = _forward_kept_op(logits, labels, ignore_index)
        ctx.save_for_backward(logits, labels)
        ctx.ignore_index = ignore_index
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None  # it becomes the gradient, once
        if torch.is_grad_enabled() or _batched(upstream):
            _, normalizers = _forward_op(logits.detach(), labels, ctx.ignore_index)
            return _backward_op(upstream, normalizers, logits, labels, ctx.ignore_index), None, None
        if kept is None:
            _, kept = _forward_kept_op(logits, labels, ctx.ignore_index)
        return eager.weigh_rows(kept, torch.where(labels == ctx.ignore_index, 0.0, upstream)), None, None


def keeps(logits: Tensor) -> bool:
    """Tell whether `KeptRowLosses` is the way: fp16 would lose small probabilities before they are weighted."""
    if torch.compiler.is_compiling() or kernel_mode() == "triton":
        return False
    if torch._C._are_functorch_transforms_active():  # in which a graph's own memory can't be written
        return False
    wanted = logits.requires_grad and torch.is_grad_enabled()
    return wanted and logits.device.type == "cpu" and logits.dtype != torch.float16


def _batched(tensor: Tensor) -> bool:
    kinds = torch._C._functorch
    return kinds.is_legacy_batchedtensor(tensor) or kinds.is_functorch_wrapped_tensor(tensor)
