"""The projected Adam step without Triton: products with the vendor's library, everything else in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_weights.kernels.projected_adam.blockwise import dequantize, quantize

TOGETHER = 1 << 19  # elements of moments updated at a time: small matrices share calls, large ones stay in the cache


def step_plain(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step_sizes: Sequence[float],
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
) -> None:
    """Take an Adam step without projection, bit for bit as the AdamW of transformers did it."""
    wide = [grad.to(moment.dtype) for grad, moment in zip(grads, exp_avgs, strict=True)]
    moments, squares, weights = list(exp_avgs), list(exp_avg_sqs), list(params)
    torch._foreach_mul_(moments, beta1)
    torch._foreach_add_(moments, wide, alpha=1.0 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, wide, wide, value=1.0 - beta2)
    roots = list(torch._foreach_sqrt(squares))
    torch._foreach_add_(roots, eps)
    torch._foreach_addcdiv_(weights, moments, roots, [-size for size in step_sizes])
    if decay > 0.0:
        torch._foreach_add_(weights, weights, alpha=-decay)


def step_projected(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    lefts: Sequence[Tensor],
    rights: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step_sizes: Sequence[float],
    beta1: float,
    beta2: float,
    eps: float,
    scale: float,
    decay: float,
    projected: bool,
) -> None:
    """Take projected steps, few matrices at a time; only for narrow dtypes a wide copy of their size exists."""
    for place in _batches([moment.numel() for moment in exp_avgs]):
        count = len(params[place])
        sides = [side[place] if side else [None] * count for side in (lefts, rights)]
        moments, squares = list(exp_avgs[place]), list(exp_avg_sqs[place])
        if projected:
            reduced = [grad.to(moment.dtype) for grad, moment in zip(grads[place], moments, strict=True)]
        else:
            reduced = list(map(_project, grads[place], *sides, moments))
        torch._foreach_lerp_(moments, reduced, 1.0 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, reduced, reduced, value=1.0 - beta2)
        roots = list(torch._foreach_sqrt(squares))
        torch._foreach_add_(roots, eps)
        updates = torch._foreach_div(moments, roots)
        for param, left, right, update, size in zip(params[place], *sides, updates, step_sizes[place], strict=True):
            _descend(param, left, right, update, size * scale, 1.0 - decay)


def _batches(numels: Sequence[int]) -> Iterator[slice]:
    """Put small matrices together, up to ``TOGETHER`` elements of their moments."""
    start = total = 0
    for index, numel in enumerate(numels):
        if total + numel > TOGETHER and index > start:
            yield slice(start, index)
            start, total = index, 0
        total += numel
    yield slice(start, len(numels))


def _project(grad: Tensor, left: Tensor | None, right: Tensor | None, like: Tensor) -> Tensor:
    wide = grad if grad.dtype == like.dtype else grad.to(like.dtype)
    if left is not None and right is not None:
        return left.T @ wide @ right.T
    if left is not None:
        return left.T @ wide if like.is_contiguous() else (wide.T @ left).T
    return wide if right is None else wide @ right.T


def _descend(
    param: Tensor, left: Tensor | None, right: Tensor | None, update: Tensor, step: float, kept: float
) -> None:
    """Subtract a step projected back, then keep a share of the weights."""
    if left is not None and right is not None:
        update = left @ update
    first, second = (left, update) if right is None else (update, right)
    wide = param if param.dtype == update.dtype else param.to(update.dtype)
    if first is None or second is None:
        wide.add_(update, alpha=-step).mul_(kept)
    else:
        wide.addmm_(first, second, beta=kept, alpha=-step * kept)
    if wide is not param:
        param.copy_(wide)


def step_8bit(
    param: Tensor,
    grad: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    absmax: Tensor,
    sq_absmax: Tensor,
    step_size: float,
    beta1: float,
    beta2: float,
    eps: float,
    scale: float,
    decay: float,
    projected: bool,
) -> None:
    """Take the step of one matrix with moments that are wide for its duration only."""
    moment = dequantize(exp_avg, absmax, signed=True)
    square = dequantize(exp_avg_sq, sq_absmax, signed=False)
    turned = right is None and left is not None  # blocks run along the projected side
    if turned:
        moment, square = moment.T, square.T
    lefts, rights = [] if left is None else [left], [] if right is None else [right]
    rule = ([step_size], beta1, beta2, eps, scale, decay, projected)
    step_projected([param], [grad], lefts, rights, [moment], [square], *rule)
    quantize(moment.T if turned else moment, exp_avg, absmax, signed=True)
    quantize(square.T if turned else square, exp_avg_sq, sq_absmax, signed=False)
