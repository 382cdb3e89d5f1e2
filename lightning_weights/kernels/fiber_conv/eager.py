"""The convolution without Triton: edges in chunks whose kernels and messages stay in the cache, never all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_weights.kernels.fiber_conv.chunks import Blocks, Runs, chunks
from lightning_weights.kernels.fiber_conv.edges import SortedEdges


def gather(features: Tensor, basis: Tensor, weight: Tensor, edges: SortedEdges) -> Tensor:
    """Sum kernels times features over the edges of every receiver.

    Args:
        features: f of shape (N, O, C).
        basis: φ of shape (E, O, B), or (E, O/2, B) if the second half of the orientations goes against the edges.
        weight: W of shape (C, B).
        edges: The sorted graph.

    Returns:
        Sums of shape (N, O, C) in fp32 or wider.
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    weight_t, parts = weight.to(wide).t().contiguous(), _parts(features, basis, wide)
    result = torch.zeros_like(features, dtype=wide, memory_format=torch.contiguous_format)
    for some, (kernel, messages) in _chunks(parts[0], edges, 2):
        flat, rows = kernel.view(-1, weight.shape[0]), _rows(basis, some)
        take = [some.take(part, end) for end, part in enumerate(parts)]
        add = [some.add(part, 1 - end) for end, part in enumerate(_parts(result, basis, wide))]
        for number in range(some.count):
            torch.mm(rows[number].to(wide), weight_t, out=flat)
            for way in reversed(range(len(parts))):
                into = messages if way else kernel  # which is read for the last time then
                add[way](number, torch.mul(kernel, take[way](number, messages), out=into))
    return result


def gather_backward(
    grad: Tensor, features: Tensor, basis: Tensor, weight: Tensor, edges: SortedEdges, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute gradients of `gather`, making every kernel anew.

    Args:
        grad: Gradient of the sums, of shape (N, O, C).
        features: f of shape (N, O, C).
        basis: φ of shape (E, O, B), or (E, O/2, B).
        weight: W of shape (C, B).
        edges: The sorted graph.
        needed: Which of the gradients of f, φ and W are wanted.

    Returns:
        The gradients, in the data types of f, φ and W; empty where not wanted.
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    parts, slopes = _parts(features, basis, wide), _parts(grad, basis, wide)
    wide_weight = weight.to(wide).contiguous()
    weight_t = wide_weight.t()
    to_features = features.new_zeros(features.shape if needed[0] else 0, dtype=wide)
    to_parts = _parts(to_features, basis, wide) if needed[0] else ()
    to_basis = torch.empty_like(basis, memory_format=torch.contiguous_format) if needed[1] else basis.new_empty(0)
    to_weight = torch.zeros_like(wide_weight if needed[2] else wide_weight[:0])
    for some, (kernel, products, other) in _chunks(parts[0], edges, 3):
        flat, rows = kernel.view(-1, weight.shape[0]), _rows(basis, some)
        to_rows = _rows(to_basis, some) if needed[1] else ()
        take = [some.take(part, end) for end, part in enumerate(parts)]
        take_slope = [some.take(part, 1 - end) for end, part in enumerate(slopes)]
        add = [some.add(part, end) for end, part in enumerate(to_parts)]
        for number in range(some.count):
            own = rows[number].to(wide)
            if needed[0]:
                torch.mm(own, weight_t, out=flat)
                for way in reversed(range(len(parts))):
                    into = products if way else kernel
                    add[way](number, torch.mul(kernel, take_slope[way](number, products), out=into))
            if needed[1] or needed[2]:
                torch.mul(take[0](number, products), take_slope[0](number, other), out=kernel)
                for way in range(1, len(parts)):
                    kernel.addcmul_(take[way](number, products), take_slope[way](number, other))
            if needed[1] and basis.dtype == wide:
                torch.mm(flat, wide_weight, out=to_rows[number])
            elif needed[1]:
                to_rows[number].copy_(flat @ wide_weight)
            if needed[2]:
                to_weight.addmm_(flat.t(), own)
    return (
        to_features.to(features.dtype),
        to_basis,
        to_weight.to(weight.dtype) if needed[2] else weight.new_empty(0),
    )


def across(fiber: Tensor, features: Tensor, bias: Tensor | None = None) -> Tensor:
    """Contract orientations, channel by channel: the mean over o of F[o, p] f[o], plus b.

    Args:
        fiber: F of shape (O, O, C), from and to orientations.
        features: f of shape (N, O, C).
        bias: b of shape (C,).

    Returns:
        Features of shape (N, O, C).
    """
    scaled = fiber / len(fiber)
    result = features[:, :1] * scaled[0] if bias is None else torch.addcmul(bias, features[:, :1], scaled[0])
    for o in range(1, len(scaled)):
        result.addcmul_(features[:, o : o + 1], scaled[o])
    return result


def _parts(features: Tensor, basis: Tensor, wide: torch.dtype) -> tuple[Tensor, ...]:
    """Return views (N, X) of what senders give and, for a basis with half the orientations, receivers."""
    width = max(1, basis.shape[1] * features.shape[2])
    parts: tuple[Tensor, ...] = features.to(wide).contiguous().flatten(1).split(width, dim=1)
    return parts


def _chunks(flat: Tensor, edges: SortedEdges, buffers: int) -> Iterator[tuple[Runs | Blocks, list[Tensor]]]:
    """Yield equal chunks of edges, and memory for so many times the messages of one."""
    width, memory = flat.shape[1], flat.new_empty(0)
    for some in chunks(edges, width):
        count = buffers * math.prod(some.shape) * width
        if memory.numel() < count:
            memory = flat.new_empty(count)
        yield some, list(memory[:count].view(buffers, *some.shape, width).unbind())


def _rows(basis: Tensor, some: Runs | Blocks) -> tuple[Tensor, ...]:
    """Return the basis functions of every chunk's edges."""
    return basis[some.edges].contiguous().view(some.count, -1, basis.shape[-1]).unbind()
