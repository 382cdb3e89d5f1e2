"""One CLASSP update: threshold, accumulate, scale and step, in one pass over the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.kernels._op import local_shards, register, takes_triton
from lightning_weights.kernels.classp_step.eager import step_asynchronously, step_in_cache
from lightning_weights.kernels.classp_step.reference import classp_step_reference, magnitude_threshold

__all__ = ["classp_step", "classp_step_reference", "magnitude_threshold"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # weights and gradients of the Triton kernel; A is fp32


def _step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    grad_sums: Sequence[Tensor],
    counts: Tensor,
    lr: float,
    threshold: float,
    power: float,
    eps: float,
    apply_decay: bool,
    count_accepted: bool,
) -> None:
    arguments = (params, grads, grad_sums, counts, lr, threshold, power, eps, apply_decay, count_accepted)
    if takes_triton(counts.device.type, [(params, DTYPES), (grads, DTYPES), (grad_sums, DTYPES[:1])]):
        from lightning_weights.kernels.classp_step.kernel import launch_classp_step

        launch_classp_step(*arguments[:-1])
    elif counts.device.type == "cpu":
        step_in_cache(*arguments)
    else:
        step_asynchronously(*arguments)


def _step_fake(*arguments: object) -> None:
    return None


_op = register(
    "classp_step",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] grad_sums, Tensor(c!) counts, float lr, float threshold, "
    "float power, float eps, bool apply_decay, bool count_accepted) -> ()",
    implementation=_step,
    fake=_step_fake,
)


def classp_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    grad_sums: Sequence[Tensor],
    counts: Tensor,
    *,
    lr: float,
    threshold: float,
    power: float,
    eps: float,
    apply_decay: bool = True,
    count_accepted: bool = True,
) -> None:
    """Take one CLASSP step in place on lists of tensors: [`classp_step_reference`][] for each, fused.

    Args:
        params: Weights of one device, updated in place; plain tensors or ``DTensor`` shards.
        grads: Gradients, laid out like the weights. Elements that are NaN or infinite are skipped.
        grad_sums: Accumulators in fp32 (or wider), updated in place.
        counts: int64 tensor of two elements on the weights' device; the number of accepted weights is added to the
            first, the number of non-finite gradient elements to the second.
        lr: Learning rate α; a negative value ascends.
        threshold: τ ≥ 0, compared with the squared gradient.
        power: p > 0.
        eps: ε, inside the root.
        apply_decay: Whether the step is divided by the root of the accumulator.
        count_accepted: Whether ``counts[0]`` is needed; on the CPU counting takes a pass of its own.

    Raises:
        ShardedParameterError: If a weight, its gradient and its accumulator are sharded differently.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Examples:
        >>> w, a, counts = torch.zeros(2), torch.zeros(2), torch.zeros(2, dtype=torch.int64)
        >>> classp_step([w], [torch.tensor([1.0, 0.0])], [a], counts, lr=0.5, threshold=0.0, power=1.0, eps=1e-9)
        >>> w.tolist(), counts.tolist()
        ([-0.5, 0.0], [1, 0])
    """
    params, grads, grad_sums = local_shards(params, grads, grad_sums)
    _op(params, grads, grad_sums, counts, lr, threshold, power, eps, apply_decay, count_accepted)
