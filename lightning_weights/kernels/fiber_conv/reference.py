"""Specification of the separable convolution over positions and orientations in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.kernels.fiber_conv.edges import SortedEdges


def fiber_conv_reference(
    features: Tensor,
    basis: Tensor,
    weight: Tensor,
    fiber: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    edges: SortedEdges,
) -> Tensor:
    """Compute [`fiber_conv`][] operation by operation, in fp32 or wider: its specification.

    Args:
        features: f of shape (N, O, C).
        basis: φ of shape (E, O, B), in the order of the edges, or (E, O/2, B).
        weight: W of shape (C, B).
        fiber: F of shape (O, O, C), from and to orientations; ``None`` leaves orientations alone.
        bias: b of shape (C,).
        edges: The sorted graph.

    Returns:
        Features of shape (N, O, C).

    Examples:
        >>> from lightning_weights.kernels.fiber_conv import sort_edges
        >>> edges = sort_edges(torch.tensor([[0, 1], [0, 0]]), 2)
        >>> f = torch.tensor([[[1.0]], [[2.0]]])
        >>> fiber_conv_reference(f, torch.ones(2, 1, 1), torch.tensor([[10.0]]), edges=edges).flatten()
        tensor([30.,  0.])
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    kernel = whole_basis(basis, features, edges).to(wide) @ weight.to(wide).t()
    messages = kernel * features.to(wide)[edges.senders]
    result = torch.zeros_like(features, dtype=wide).index_add(0, edges.receivers, messages)
    if fiber is not None:
        result = torch.einsum("opc,noc->npc", fiber.to(wide), result) / features.shape[1]
    if bias is not None:
        result = result + bias.to(wide)
    return result.to(features.dtype)


def whole_basis(basis: Tensor, features: Tensor, edges: SortedEdges) -> Tensor:
    """Write a basis for half of the orientations out for all: the second half's are those of the reverse edges.

    Args:
        basis: φ of shape (E, O, B), or (E, O/2, B).
        features: f of shape (N, O, C).
        edges: The sorted graph.

    Returns:
        φ of shape (E, O, B).
    """
    if basis.shape[1] == features.shape[1]:
        return basis
    return torch.cat([basis, basis.index_select(0, edges.by_sender)], dim=1)
