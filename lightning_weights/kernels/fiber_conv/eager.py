"""The convolution without Triton: edges in chunks whose kernels and messages stay in the cache, never all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_weights.kernels.fiber_conv.chunks import RECEIVERS, SENDERS, Block, Run, chunks
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
    sums = _parts(result, basis, wide)
    for chunk, (kernel, messages) in _chunks(parts[0], edges, 2):
        torch.mm(_rows(basis, chunk.edges, wide), weight_t, out=kernel.view(-1, weight.shape[0]))
        for source, part, own in zip((SENDERS, RECEIVERS), parts, sums, strict=False):
            torch.mul(kernel, chunk.take(part, source, messages), out=messages)
            chunk.add(own, 1 - source, messages)
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
    to_features = features.new_zeros(features.shape if needed[0] else 0, dtype=wide)
    to_parts = _parts(to_features, basis, wide) if needed[0] else []
    to_basis = torch.empty_like(basis, memory_format=torch.contiguous_format) if needed[1] else basis.new_empty(0)
    to_weight = torch.zeros_like(wide_weight if needed[2] else wide_weight[:0])
    for chunk, (kernel, products, other) in _chunks(parts[0], edges, 3):
        rows = _rows(basis, chunk.edges, wide)
        if needed[0]:
            torch.mm(rows, wide_weight.t(), out=kernel.view(-1, weight.shape[0]))
            for source, slope, to_part in zip((SENDERS, RECEIVERS), slopes, to_parts, strict=False):
                torch.mul(kernel, chunk.take(slope, 1 - source, products), out=products)
                chunk.add(to_part, source, products)
        if needed[1] or needed[2]:
            for source, part, slope in zip((SENDERS, RECEIVERS), parts, slopes, strict=False):
                ends = chunk.take(part, source, kernel), chunk.take(slope, 1 - source, other)
                if source == SENDERS:
                    torch.mul(*ends, out=products)
                else:
                    products.addcmul_(*ends)
            flat = products.view(-1, weight.shape[0])
            if needed[1] and basis.dtype == wide:
                torch.mm(flat, wide_weight, out=to_basis[chunk.edges].view(rows.shape))
            elif needed[1]:
                to_basis[chunk.edges] = (flat @ wide_weight).view_as(to_basis[chunk.edges])
            if needed[2]:
                to_weight.addmm_(flat.t(), rows)
    return (
        to_features.to(features.dtype),
        to_basis,
        to_weight.to(weight.dtype) if needed[2] else weight.new_empty(0),
    )


def across(fiber: Tensor, features: Tensor) -> Tensor:
    """Contract orientations, channel by channel: the mean over o of F[o, p] f[o].

    Args:
        fiber: F of shape (O, O, C), from and to orientations.
        features: f of shape (N, O, C).

    Returns:
        Features of shape (N, O, C).
    """
    result = torch.zeros_like(features)
    for o in range(fiber.shape[0]):
        result.addcmul_(features[:, o : o + 1], fiber[o], value=1.0 / fiber.shape[0])
    return result


def _parts(features: Tensor, basis: Tensor, wide: torch.dtype) -> tuple[Tensor, ...]:
    """Return views (N, X) of what goes along the edges and, if the basis has half the orientations, against them."""
    width = max(1, basis.shape[1] * features.shape[2])
    parts: tuple[Tensor, ...] = features.to(wide).contiguous().flatten(1).split(width, dim=1)
    return parts


def _chunks(flat: Tensor, edges: SortedEdges, buffers: int) -> Iterator[tuple[Run | Block, list[Tensor]]]:
    """Yield edges, and memory for so many messages."""
    width, memory = flat.shape[1], flat.new_empty(0)
    shape, pieces = None, []
    for chunk in chunks(edges, width):
        if chunk.shape != shape:
            shape, count = chunk.shape, buffers * math.prod(chunk.shape) * width
            if memory.numel() < count:
                memory = flat.new_empty(count)
            pieces = list(memory[:count].view(buffers, *shape, width).unbind())
        yield chunk, pieces


def _rows(basis: Tensor, some: slice, wide: torch.dtype) -> Tensor:
    return basis[some].to(wide).reshape(-1, basis.shape[-1])
