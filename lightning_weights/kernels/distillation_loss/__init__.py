"""Cross-entropy plus distillation from a teacher that knows the first classes, in one pass over the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_weights.errors import check_number
from lightning_weights.kernels._once import differentiable_once
from lightning_weights.kernels._op import register, takes_triton
from lightning_weights.kernels.distillation_loss.eager import loss_and_gradient
from lightning_weights.kernels.distillation_loss.reference import distillation_loss_reference

__all__ = ["distillation_loss", "distillation_loss_reference"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # logits of the Triton kernels
NO_LABEL = torch.iinfo(torch.int64).min  # what cross_entropy ignores: nothing that occurs


def _forward(
    logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    weight: Tensor,
    temperature: float,
    kd_scale: float,
    relative: bool,
    fused: bool,
) -> tuple[Tensor, Tensor]:
    """Return the loss and what its gradient needs: statistics of the rows if fused, else the gradient itself."""
    _check_labels(targets, logits.shape[1])
    factors = (temperature, *_factors(weight, kd_scale))
    if not fused:
        return loss_and_gradient(logits, teacher_logits, targets, *factors, relative)
    from lightning_weights.kernels.distillation_loss.kernel import launch_distillation_loss

    return launch_distillation_loss(logits, teacher_logits, targets, *factors, relative)


def _forward_fake(logits: Tensor, teacher_logits: Tensor, targets: Tensor, *factors: Any) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(logits.dtype, torch.float32)
    rows, classes = logits.shape
    kept = (3, rows) if factors[-1] else (rows, classes)
    return logits.new_empty((), dtype=wide), logits.new_empty(kept, dtype=wide)


def _backward(
    grad_output: Tensor,
    kept: Tensor,
    logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    weight: Tensor,
    temperature: float,
    kd_scale: float,
    fused: bool,
) -> Tensor:
    if not fused:
        return torch.mul(kept, grad_output, out=_backward_fake(grad_output, kept, logits))
    from lightning_weights.kernels.distillation_loss.kernel import launch_distillation_loss_backward

    factors = (temperature, *_factors(weight, kd_scale))
    return launch_distillation_loss_backward(grad_output, kept, logits, teacher_logits, targets, *factors)


def _backward_fake(grad_output: Tensor, kept: Tensor, logits: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _factors(weight: Tensor, kd_scale: float) -> tuple[float, float]:
    """Weights of the two terms. λ comes as a tensor on the host, which compiled graphs do not specialise on."""
    share = float(weight)
    return 1.0 - share, share * kd_scale


def _check_labels(targets: Tensor, classes: int) -> None:
    # Elsewhere looking would make the host wait; there the loss of a row with such a label is NaN or an assertion.
    if targets.device.type == "cpu" and targets.numel():
        low, high = (int(value) for value in targets.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(_label_message(f"from {low} to {high}", classes))


def _label_message(found: str, classes: int) -> str:
    return (
        f"targets has labels {found}; allowed are 0 to {classes - 1} for logits of {classes} classes. Count classes in "
        f"the order of their arrival, and grow the head before training on new ones"
    )


_forward_op = register(
    "distillation_loss",
    "(Tensor logits, Tensor teacher_logits, Tensor targets, Tensor weight, float temperature, float kd_scale, "
    "bool relative, bool fused) -> (Tensor, Tensor)",
    implementation=_forward,
    fake=_forward_fake,
)
_backward_op = differentiable_once(
    register(
        "distillation_loss_backward",
        "(Tensor grad_output, Tensor kept, Tensor logits, Tensor teacher_logits, Tensor targets, Tensor weight, "
        "float temperature, float kd_scale, bool fused) -> Tensor",
        implementation=_backward,
        fake=_backward_fake,
    )
)


class _DistillationLoss(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor,
        teacher_logits: Tensor,
        targets: Tensor,
        weight: Tensor,
        options: tuple[float, float, bool, bool],
    ) -> Any:
        return _forward_op(logits, teacher_logits, targets, weight, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, (ctx.temperature, ctx.kd_scale, _, ctx.fused) = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], *tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradient = _backward_op(grad_outputs[0], *ctx.saved_tensors, ctx.temperature, ctx.kd_scale, ctx.fused)
        return gradient, None, None, None, None


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    weight: float,
    temperature: float = 2.0,
    kd_scale: float = 1.0,
    relative: bool = False,
) -> Tensor:
    r"""Mix cross-entropy over all classes with distillation over those that a teacher knows, fused.

    $$L = \frac{1}{N} \sum_i \Bigl[ -(1-\lambda) \log \mathrm{softmax}(o_i)_{y_i}
    - \lambda s \sum_{k<C_o} \hat q_{ik} \log q_{ik} \Bigr], \quad
    q_i = \mathrm{softmax}(o_{i,:C_o} / T), \quad \hat q_i = \mathrm{softmax}(\hat o_i / T)$$

    The arithmetic is in fp32 or wider, also for narrow logits and under autocast. Gradients flow to ``logits`` alone:
    the teacher is a constant.

    Args:
        logits: Student's logits o of shape (N, C); classes of the teacher come first.
        teacher_logits: Teacher's logits ô of shape (N, C_o) with 1 ≤ C_o ≤ C; any number of columns if λ = 0.
        targets: Labels of shape (N,), int64, from 0 to C-1.
        weight: λ in [0, 1]. With 0 this is ``torch.nn.functional.cross_entropy``, bit for bit.
        temperature: T > 0.
        kd_scale: s ≥ 0. Weight aligning has 1, Hinton's distillation T², its mean over all elements T²/C.
        relative: Whether the teacher's entropy is subtracted, which makes the term a Kullback-Leibler divergence with
            the same gradient.

    Returns:
        The loss, a 0-d tensor in fp32, or in fp64 for fp64 logits.

    Raises:
        ValueError: If shapes do not fit, a number is out of range, or, on the CPU, a label is.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: the loss of Zhao et al. 2020, arXiv:1911.07053.

    Examples:
        >>> student = torch.tensor([[0.0, 0.0, 5.0]], requires_grad=True)
        >>> loss = distillation_loss(student, torch.tensor([[1.0, 1.0]]), torch.tensor([2]), weight=2 / 3)
        >>> loss.backward()
        >>> student.grad[0, 0] == student.grad[0, 1]
        tensor(True)
    """
    _check(logits, teacher_logits, targets, weight, temperature, kd_scale)
    if weight == 0.0:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        try:
            return F.cross_entropy(wide, targets, ignore_index=NO_LABEL)
        except IndexError as error:
            raise ValueError(_label_message("outside the classes", logits.shape[1])) from error
    fused = _fused(logits.device.type, (logits.dtype, teacher_logits.dtype))
    share = torch.full((), weight, dtype=torch.float64, device="cpu")
    options = (float(temperature), float(kd_scale), relative, fused)
    loss: Tensor
    loss, _ = _DistillationLoss.apply(logits, teacher_logits.detach(), targets, share, options)  # type: ignore[no-untyped-call]
    return loss


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _fused(device_type: str, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Decide which way to go before the operator is called, which tells what it keeps; compiled graphs ask once."""
    return takes_triton(device_type, [([torch.empty(0, dtype=dtype, device="meta") for dtype in dtypes], DTYPES)])


def _check(
    logits: Tensor, teacher_logits: Tensor, targets: Tensor, weight: float, temperature: float, kd_scale: float
) -> None:
    check_number("temperature", temperature, low=0.0, low_allowed=False)
    check_number("kd_scale", kd_scale, low=0.0)
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"weight is {weight}; allowed is a number in [0, 1]")
    if logits.ndim != 2 or teacher_logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}, teacher_logits {tuple(teacher_logits.shape)} and targets "
            f"{tuple(targets.shape)}; allowed are (N, C), (N, C_o) and (N,). Flatten other dimensions into the first"
        )
    if targets.dtype != torch.int64 or not (logits.is_floating_point() and teacher_logits.is_floating_point()):
        raise ValueError(
            f"logits is {logits.dtype}, teacher_logits {teacher_logits.dtype} and targets {targets.dtype}; allowed are "
            f"floating-point logits and int64 labels"
        )
    known = teacher_logits.shape[1]
    if weight > 0.0 and not (len(teacher_logits) == len(logits) and 1 <= known <= logits.shape[1]):
        raise ValueError(
            f"teacher_logits has shape {tuple(teacher_logits.shape)} for logits of shape {tuple(logits.shape)}; "
            f"allowed are the same rows and 1 to {logits.shape[1]} columns, the student's first classes. Without a "
            f"teacher, use weight=0"
        )
