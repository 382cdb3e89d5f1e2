"""Other ways to take a CLASSP step: multi-tensor, compiled, and as the author's code was published."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError
from lightning_weights.kernels import local_shards
from lightning_weights.kernels.classp_step import magnitude_threshold

GRAPH_SIZE = 50  # tensors per compiled graph: more take minutes to compile, fewer take longer to call
MOST_GRAPHS = 64  # combinations of shapes compiled before PyTorch falls back to eager
LARGEST_PLAUSIBLE_THRESHOLD = 0.05


def classp_step_foreach(
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
    """Take one CLASSP step in place with PyTorch's multi-tensor operations; it never waits for the device.

    Args:
        params: Weights, updated in place; plain tensors or ``DTensor`` shards.
        grads: Gradients, laid out like the weights. Elements that are NaN or infinite are skipped.
        grad_sums: Accumulators in fp32 (or wider), updated in place.
        counts: int64 tensor of two elements on the weights' device; the number of accepted weights is added to the
            first, the number of non-finite gradient elements to the second.
        lr: Learning rate α; a negative value ascends.
        threshold: τ ≥ 0, compared with the squared gradient.
        power: p > 0.
        eps: ε, inside the root.
        apply_decay: Whether the step is divided by the root of the accumulator.
        count_accepted: Whether ``counts[0]`` is needed.

    Raises:
        ShardedParameterError: If a weight, its gradient and its accumulator are sharded differently.

    Examples:
        >>> w, a, counts = torch.zeros(2), torch.zeros(2), torch.zeros(2, dtype=torch.int64)
        >>> rule = dict(lr=0.5, threshold=0.0, power=1.0, eps=1e-9)
        >>> classp_step_foreach([w], [torch.tensor([1.0, 0.0])], [a], counts, **rule)
        >>> w.tolist(), counts.tolist()
        ([-0.5, 0.0], [1, 0])
    """
    if not params:
        return
    weights, gradients, totals = map(list, local_shards(params, grads, grad_sums))
    wide = [grad.to(total.dtype) for grad, total in zip(gradients, totals, strict=True)]
    # Multiplying by a mask would keep NaN, and there is no multi-tensor selection: these two go tensor by tensor.
    finite = [g.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for g in wide]
    masked = [torch.hardshrink(g, magnitude_threshold(threshold, g.dtype)) for g in finite]
    counts[1] += torch.stack([g.isfinite().logical_not_().sum() for g in wide]).sum()
    if count_accepted:
        counts[0] += torch.stack([g.count_nonzero() for g in masked]).sum()
    sizes = list(torch._foreach_abs(masked))
    if power != 1.0:
        torch._foreach_pow_(sizes, power)
    torch._foreach_add_(totals, sizes)
    if not apply_decay:
        torch._foreach_add_(weights, masked, alpha=-lr)
        return
    roots = list(torch._foreach_add(totals, eps))
    if power != 1.0:
        torch._foreach_pow_(roots, 1.0 / power)
    torch._foreach_addcdiv_(weights, masked, roots, value=-lr)


@torch.no_grad()
def classp_step_compiled(
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
    """Take one CLASSP step in place through ``torch.compile``: seconds of compilation, then one pass over the weights.

    Tensors are compiled in graphs of 50, one for every combination of shapes that occurs; hyper-parameters are tensors,
    so that a scheduler compiles nothing again. Both counts are taken only if ``count_accepted``.

    Args:
        params: Weights, updated in place; plain tensors or ``DTensor`` shards.
        grads: Gradients, laid out like the weights. Elements that are NaN or infinite are skipped.
        grad_sums: Accumulators in fp32 (or wider), updated in place.
        counts: int64 tensor of two elements on the weights' device; the number of accepted weights is added to the
            first, the number of non-finite gradient elements to the second.
        lr: Learning rate α; a negative value ascends.
        threshold: τ ≥ 0, compared with the squared gradient.
        power: p > 0.
        eps: ε, inside the root.
        apply_decay: Whether the step is divided by the root of the accumulator.
        count_accepted: Whether ``counts`` are needed.

    Raises:
        ShardedParameterError: If a weight, its gradient and its accumulator are sharded differently.
    """
    params, grads, grad_sums = local_shards(params, grads, grad_sums)
    triples = [triple for triple in zip(params, grads, grad_sums, strict=True) if triple[0].numel()]
    triples.sort(key=lambda triple: triple[0].numel())  # equal shapes together make equal graphs
    hyper: dict[torch.dtype, list[Tensor]] = {}
    for dtype in {grad_sum.dtype for grad_sum in grad_sums}:
        numbers = (lr, magnitude_threshold(threshold, dtype), power, eps, float(apply_decay))
        hyper[dtype] = [torch.full((), number, dtype=dtype, device=counts.device) for number in numbers]
    if count_accepted:
        for _, grad, grad_sum in triples:
            wide = grad.to(grad_sum.dtype)
            size = wide.abs()
            counts[0] += ((size > hyper[size.dtype][1]) & wide.isfinite()).sum()
            counts[1] += wide.isfinite().logical_not_().sum()
    step = _compiled(power if power in (1.0, 2.0) else None)
    with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
        for start in range(0, len(triples), GRAPH_SIZE):
            step(triples[start : start + GRAPH_SIZE], hyper)


@functools.cache
def _compiled(power: float | None) -> Callable[..., None]:
    """Compile the step of a few tensors; ``power`` is 1, 2 or, for an argument of the graph, None."""

    def step(triples: list[tuple[Tensor, Tensor, Tensor]], hyper: dict[torch.dtype, list[Tensor]]) -> None:
        for param, grad, grad_sum in triples:
            lr, magnitude, exponent, eps, decay = hyper[grad_sum.dtype]
            g = grad.to(grad_sum.dtype)
            size = g.abs()
            accepted = (size > magnitude) & (size < math.inf)
            new_sum = grad_sum + torch.where(accepted, size.pow(power or exponent), 0.0)
            root = (eps + new_sum).pow(1.0 / power if power else 1.0 / exponent)
            wide = param.to(grad_sum.dtype)
            change = lr * g / torch.where(decay > 0, root, 1.0)
            grad_sum.copy_(new_sum)
            param.copy_(torch.where(accepted, wide - change, wide))

    return torch.compile(step, dynamic=False)


def published_step(
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
    """Take one step in place as the author's published code does, tensor by tensor.

    With u = 1 if any g² of the tensor is non-zero, else 0: where u > τ, A ← A + |g| whatever p is, and
    w ← w - α·g / (ε + A)^(1/p) with decay or w ← w - α·g without. So every τ < 1 accepts whole tensors and τ ≥ 1 none.

    Args:
        params: Weights, updated in place; plain tensors only.
        grads: Gradients, laid out like the weights. Elements that are NaN or infinite are skipped.
        grad_sums: Accumulators in fp32 (or wider), updated in place.
        counts: int64 tensor of two elements on the weights' device; the number of weights in accepted tensors is added
            to the first, the number of non-finite gradient elements to the second.
        lr: Learning rate α; a negative value ascends.
        threshold: τ ≥ 0, compared with u.
        power: p > 0, of the root only.
        eps: ε, inside the root.
        apply_decay: Whether the step is divided by the root of the accumulator.
        count_accepted: Whether ``counts[0]`` is needed.

    Raises:
        ShardedParameterError: If a weight is sharded: "any" needs the whole tensor.

    Differs from the published code: it would put NaN and infinity into the accumulator, where they stay for ever.

    Examples:
        >>> w, a, counts = torch.zeros(2), torch.zeros(2), torch.zeros(2, dtype=torch.int64)
        >>> rule = dict(lr=0.5, threshold=0.5, power=1.0, eps=1e-9)
        >>> published_step([w], [torch.tensor([1.0, 1e-6])], [a], counts, **rule)
        >>> w.tolist(), counts.tolist()
        ([-0.5, -0.499...], [2, 0])
    """
    if any(hasattr(param, "placements") for param in params):
        raise ShardedParameterError(
            "the published CLASSP code asks whether any gradient of a whole tensor is non-zero and cannot act on "
            "shards; use variant='paper', or train without FSDP2"
        )
    for param, grad, grad_sum in zip(params, grads, grad_sums, strict=True):
        wide = grad.to(grad_sum.dtype)
        finite = wide.isfinite()
        g = torch.where(finite, wide, 0.0)
        updated = (g.square() != 0).any().to(g.dtype) > threshold
        g = torch.where(updated, g, 0.0)
        grad_sum.add_(g.abs())
        step = g / (eps + grad_sum).pow(1.0 / power) if apply_decay else g
        old = param.to(grad_sum.dtype)
        param.copy_(torch.where(updated & finite, old - lr * step, old))
        counts[1] += finite.logical_not().sum()
        if count_accepted:
            counts[0] += (finite & updated).sum()


def warn_if_published_threshold(name: str, threshold: float) -> None:
    """Warn about thresholds like the paper's, which were chosen with code that does not apply them per weight.

    Args:
        name: Argument that holds the threshold, for the message.
        threshold: τ, on squared gradients.
    """
    if threshold >= LARGEST_PLAUSIBLE_THRESHOLD:
        warnings.warn(
            f"{name} is {threshold}, compared with squared gradients, which are mostly 1e-10 to 1e-2: the network will "
            f"hardly train. The paper's 0.5 and 0.99 were chosen with code that compares the threshold with a truth "
            f"value, where all values below 1 act alike. Use about 1e-6, or CLASSP(variant='reference') to repeat that "
            f"code.",
            LightningWeightsWarning,
            stacklevel=3,
        )
