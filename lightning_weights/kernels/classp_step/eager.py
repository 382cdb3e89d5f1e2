"""The CLASSP step without Triton: in place and cache-sized on the CPU, free of synchronisation elsewhere."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.kernels.classp_step.reference import classp_step_reference, magnitude_threshold

CHUNK = 1 << 19  # elements updated at a time: what one pass wrote is still in the cache when the next reads it

_Triple = tuple[Tensor, ...]  # weights, gradient, accumulator


@torch.inference_mode()  # spares every call the autograd layers; version counters still advance
def step_in_cache(
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
    """Update CPU tensors in place, a cache-sized batch at a time; arguments as in [`classp_step`][]."""
    accepted = nonfinite = 0
    for dtype in {grad_sum.dtype for grad_sum in grad_sums}:
        magnitude = magnitude_threshold(threshold, dtype)
        # Made once: wrapping a Python number in every call costs more than the arithmetic on ten thousand weights.
        zero, epsilon = torch.zeros((), dtype=dtype), torch.tensor(eps, dtype=dtype) if apply_decay else None
        triples: list[_Triple] = [t for t in zip(params, grads, grad_sums, strict=True) if t[2].dtype == dtype]
        for batch in _batches(triples):
            scratch = _scratch(tuple(triple[0].shape for triple in batch), dtype, threading.get_ident())
            nonfinite += _update(batch, scratch, lr, magnitude, power, epsilon)
            if count_accepted:
                accepted += int(scratch.masked.ne_(zero).sum().item())  # a sum of floats vectorises; exact below 2**24
    counts.add_(torch.tensor([accepted, nonfinite]))


def _batches(triples: list[_Triple]) -> Iterator[list[_Triple]]:
    """Cut large tensors and put small ones together, up to ``CHUNK`` elements."""
    batch: list[_Triple] = []
    room = CHUNK
    for triple in triples:
        numel = triple[0].numel()
        for piece in [triple] if numel <= CHUNK else _pieces(*triple):
            numel = piece[0].numel()
            if numel > room:
                yield batch
                batch, room = [], CHUNK
            batch.append(piece)
            room -= numel
    yield batch


def _pieces(*triple: Tensor) -> Iterable[_Triple]:
    if triple[0].numel() <= CHUNK:
        return (triple,)
    if all(tensor.is_contiguous() for tensor in triple):
        return zip(*(tensor.view(-1).split(CHUNK) for tensor in triple), strict=True)
    longest = max(range(triple[0].dim()), key=triple[0].size)
    halves = zip(*(tensor.chunk(2, longest) for tensor in triple), strict=True)
    return [piece for half in halves for piece in _pieces(*half)]


class _Scratch(NamedTuple):
    """Two buffers for a batch, flat and as a view per tensor."""

    masked: Tensor
    size: Tensor
    masked_views: Sequence[Tensor]
    size_views: Sequence[Tensor]


@functools.lru_cache(maxsize=4)
def _memory(dtype: torch.dtype, thread: int) -> Tensor:
    """Two buffers per thread, kept from step to step: touching fresh memory costs more than computing in it."""
    return torch.empty((2, CHUNK), dtype=dtype)


@functools.lru_cache(maxsize=1024)
def _scratch(shapes: tuple[torch.Size, ...], dtype: torch.dtype, thread: int) -> _Scratch:
    numels = [shape.numel() for shape in shapes]
    flat = [half[: sum(numels)] for half in _memory(dtype, thread)]
    views = [[part.view(shape) for part, shape in zip(half.split(numels), shapes, strict=True)] for half in flat]
    return _Scratch(flat[0], flat[1], views[0], views[1])


def _update(
    batch: list[_Triple], scratch: _Scratch, lr: float, magnitude: float, power: float, epsilon: Tensor | None
) -> int:
    """Update one batch; leave the masked gradients in the scratch and return how many elements were not finite."""
    masked, size, masked_views, size_views = scratch
    for (_, grad, _), view in zip(batch, masked_views, strict=True):
        torch.hardshrink(grad if grad.dtype == view.dtype else view.copy_(grad), magnitude, out=view)
    total = torch.abs(masked, out=size).sum().item()
    if total == 0.0:
        return 0
    nonfinite = 0
    if not math.isfinite(total):
        bad = masked.isfinite().logical_not_()
        nonfinite = int(bad.sum())
        torch.abs(masked.masked_fill_(bad, 0.0), out=size)
    if power == 2.0:
        torch.square(masked, out=size)
    elif power != 1.0:
        size.pow_(power)
    for (_, _, grad_sum), view in zip(batch, size_views, strict=True):
        grad_sum.add_(view)
        if epsilon is not None:
            torch.add(grad_sum, epsilon, out=view)
    if epsilon is None:
        for (param, _, _), step in zip(batch, masked_views, strict=True):
            param.add_(step, alpha=-lr)
        return nonfinite
    if power == 2.0:
        size.sqrt_()
    elif power != 1.0:
        size.pow_(1.0 / power)
    for (param, _, _), step, root in zip(batch, masked_views, size_views, strict=True):
        param.addcdiv_(step, root, value=-lr)
    return nonfinite


def step_asynchronously(
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
    """Update tensors of an accelerator without waiting for it; arguments as in [`classp_step`][]."""
    for param, grad, grad_sum in zip(params, grads, grad_sums, strict=True):
        new_param, new_sum, accepted = classp_step_reference(
            param, grad, grad_sum, lr=lr, threshold=threshold, power=power, eps=eps, apply_decay=apply_decay
        )
        param.copy_(new_param)
        grad_sum.copy_(new_sum)
        counts.add_(torch.stack([accepted.sum(), grad.isfinite().logical_not().sum()]))
