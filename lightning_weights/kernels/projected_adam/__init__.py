"""Adam in a projected space: project, update moments, normalise, project back and step, over lists of matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError
from lightning_weights.kernels._op import local_shards, register, takes_triton
from lightning_weights.kernels.projected_adam.cost import covers
from lightning_weights.kernels.projected_adam.eager import step_8bit, step_plain, step_projected
from lightning_weights.kernels.projected_adam.reference import projected_adam_reference

__all__ = ["projected_adam", "projected_adam_reference"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # weights and gradients of the Triton kernel
STATES = (torch.float32, torch.uint8)


def _step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    lefts: Sequence[Tensor],
    rights: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    absmaxes: Sequence[Tensor],
    sq_absmaxes: Sequence[Tensor],
    step_sizes: Sequence[float],
    beta1: float,
    beta2: float,
    eps: float,
    scale: float,
    decay: float,
    projected: bool,
) -> None:
    rule = (beta1, beta2, eps, scale, decay)
    covered = [(params, DTYPES), (grads, DTYPES), (exp_avgs, STATES), ([*lefts, *rights], STATES[:1])]
    whole_and_one_sided = not projected and bool(lefts) != bool(rights)
    if whole_and_one_sided and covers(rights or lefts, exp_avgs) and takes_triton(params[0].device.type, covered):
        from lightning_weights.kernels.projected_adam.launch import launch_projected_adam

        launch_projected_adam(
            params, grads, lefts, rights, exp_avgs, exp_avg_sqs, absmaxes, sq_absmaxes, step_sizes, *rule
        )
        return
    # inference mode spares every call the autograd layers; version counters still advance
    with torch.inference_mode(), torch.autocast(params[0].device.type, enabled=False):
        if absmaxes:
            for index, step_size in enumerate(step_sizes):
                left, right = (side[index] if side else None for side in (lefts, rights))
                codes, maxima = (exp_avgs[index], exp_avg_sqs[index]), (absmaxes[index], sq_absmaxes[index])
                step_8bit(params[index], grads[index], left, right, *codes, *maxima, step_size, *rule, projected)
        elif lefts or rights:
            step_projected(params, grads, lefts, rights, exp_avgs, exp_avg_sqs, step_sizes, *rule, projected)
        else:
            step_plain(params, grads, exp_avgs, exp_avg_sqs, step_sizes, beta1, beta2, eps, decay)


def _step_fake(*arguments: object) -> None:
    return None


_op = register(
    "projected_adam",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor[] lefts, Tensor[] rights, Tensor(b!)[] exp_avgs, "
    "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] absmaxes, Tensor(e!)[] sq_absmaxes, float[] step_sizes, float beta1, "
    "float beta2, float eps, float scale, float decay, bool projected) -> ()",
    implementation=_step,
    fake=_step_fake,
)


def projected_adam(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    *,
    lefts: Sequence[Tensor] = (),
    rights: Sequence[Tensor] = (),
    absmaxes: Sequence[Tensor] = (),
    sq_absmaxes: Sequence[Tensor] = (),
    step_sizes: Sequence[float],
    beta1: float,
    beta2: float,
    eps: float,
    scale: float = 1.0,
    decay: float = 0.0,
    projected: bool = False,
) -> None:
    """Take one projected Adam step in place on lists of tensors: [`projected_adam_reference`][] for each, fused.

    Args:
        params: Weights of one device, updated in place.
        grads: Gradients of their shapes, or with ``projected`` of those of the moments.
        exp_avgs: First moments of the projected shapes, updated in place: in fp32 or wider, or their uint8 codes. Codes
            of what is projected from the left only lie transposed, so that their blocks run along the short side.
        exp_avg_sqs: Second moments, likewise.
        lefts: Projections (a, p) with orthonormal columns, one per weight, or none at all.
        rights: Projections (p, b) with orthonormal rows, one per weight, or none at all. Without both it is a plain
            Adam step, of tensors with any number of dimensions, then without ``scale``.
        absmaxes: With codes, the largest first moment of every block of 256.
        sq_absmaxes: The same of the second moments.
        step_sizes: Learning rate with bias correction of every weight.
        beta1: β₁.
        beta2: β₂.
        eps: ε, added to the root.
        scale: κ, factor of what is projected back.
        decay: Learning rate times weight decay; weights shrink by it after the step.
        projected: Whether gradients are projected already.

    Raises:
        ShardedParameterError: If projected weights are sharded, or plain ones differently from their states.
        MissingDependencyError: If moments are codes and bitsandbytes is not installed.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: Zhao et al., "GaLore", 2024, arXiv:2403.03507.

    Examples:
        >>> w, m, v = torch.zeros(1, 2), torch.zeros(1, 1), torch.zeros(1, 1)
        >>> rule = dict(step_sizes=[0.1], beta1=0.5, beta2=0.25, eps=0.0, scale=2.0)
        >>> projected_adam([w], [torch.tensor([[2.0, 5.0]])], [m], [v], rights=[torch.tensor([[1.0, 0.0]])], **rule)
        >>> w, m, v
        (tensor([[-0.1155,  0.0000]]), tensor([[1.]]), tensor([[3.]]))
    """
    if not params:
        return
    if lefts or rights:
        if any(hasattr(tensor, "placements") for tensor in (*params, *grads)):
            raise ShardedParameterError(
                "a projection needs whole matrices; keep them replicated (ignored_params of fully_shard), or use DDP"
            )
    else:
        params, grads, exp_avgs, exp_avg_sqs = local_shards(params, grads, exp_avgs, exp_avg_sqs)
        scale = 1.0
    _op(
        params, grads, lefts, rights, exp_avgs, exp_avg_sqs, absmaxes, sq_absmaxes, step_sizes, beta1, beta2, eps,
        scale, decay, projected,
    )  # fmt: skip
