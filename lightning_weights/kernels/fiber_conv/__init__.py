"""Convolution over positions and orientations, separable: a sum over edges, then one over orientations."""

from __future__ import annotations

from torch import Tensor

from lightning_weights.errors import ShardedParameterError
from lightning_weights.kernels.fiber_conv.edges import SortedEdges, is_mirrored, sort_edges
from lightning_weights.kernels.fiber_conv.ops import FiberConv
from lightning_weights.kernels.fiber_conv.reference import fiber_conv_reference

__all__ = ["SortedEdges", "fiber_conv", "fiber_conv_reference", "is_mirrored", "sort_edges"]


def fiber_conv(
    features: Tensor,
    basis: Tensor,
    weight: Tensor,
    fiber: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    edges: SortedEdges,
) -> Tensor:
    r"""Sum kernels times features over the edges of every point, then contract orientations, fused.

    $$f^{(1)}_{ioc} = \sum_{j \to i} \Bigl( \sum_b W_{cb}\, \phi_{ij,ob} \Bigr) f_{joc}, \qquad
    f'_{ipc} = \frac{1}{O} \sum_o F_{opc}\, f^{(1)}_{ioc} + b_c$$

    A basis for half of the orientations says that the reverse of every edge is an edge too, where the second half of
    the orientations sees what the first half sees here: φ_{ij,o+O/2} = φ_{ji,o}. So it is with invariants, if the
    second half are the opposites of the first. Then there are half as many kernels to make.

    Kernels Wφ and messages exist for a chunk of edges at a time, or in registers; the backward pass makes them anew.
    Sums are in fp32 or wider and in one order. Differentiable in all tensors, as often as one likes: forces, which are
    gradients, can be trained on.

    Args:
        features: f of shape (N, O, C).
        basis: φ of shape (E, O, B), in the order of the edges, or (E, O/2, B).
        weight: W of shape (C, B).
        fiber: F of shape (O, O, C), from and to orientations; ``None`` leaves out the second sum.
        bias: b of shape (C,).
        edges: The graph, from [`sort_edges`][].

    Returns:
        f' of shape (N, O, C), in the data type of the features.

    Raises:
        ValueError: If shapes, data types or devices don't fit.
        ShardedParameterError: If an operand is sharded.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> import torch
        >>> edges = sort_edges(torch.tensor([[0, 1], [0, 0]]), 2)
        >>> f = torch.tensor([[[1.0]], [[2.0]]])
        >>> fiber_conv(f, torch.ones(2, 1, 1), torch.tensor([[10.0]]), edges=edges).flatten()
        tensor([30.,  0.])
    """
    _check(features, basis, weight, fiber, bias, edges)
    result: Tensor = FiberConv.apply(features, basis, weight, fiber, bias, *edges)[0]  # type: ignore[no-untyped-call]
    return result


def _check(
    features: Tensor, basis: Tensor, weight: Tensor, fiber: Tensor | None, bias: Tensor | None, edges: SortedEdges
) -> None:
    operands = {"features": features, "basis": basis, "weight": weight, "fiber": fiber, "bias": bias}
    given = {name: tensor for name, tensor in operands.items() if tensor is not None}
    if any(hasattr(tensor, "placements") for tensor in given.values()):
        raise ShardedParameterError(
            "a convolution needs whole tensors, but an operand is sharded: let FSDP gather the layer in one unit, or "
            "pass full_tensor()"
        )
    devices = {tensor.device for tensor in (*given.values(), *edges)}
    if len(devices) > 1 or not all(tensor.is_floating_point() for tensor in given.values()):
        found = ", ".join(f"{name} {tensor.dtype} on {tensor.device}" for name, tensor in given.items())
        raise ValueError(
            f"operands are {found}, and edges on {edges.senders.device}; allowed are floating-point numbers on one "
            f"device"
        )
    fits = features.dim() == 3 and basis.dim() == 3 and weight.dim() == 2
    if fits:
        points, orientations, channels = features.shape
        fits = basis.shape[0] == len(edges.senders) and orientations in (basis.shape[1], 2 * basis.shape[1])
        fits = fits and len(edges.offsets) == points + 1
        fits = fits and weight.shape == (channels, basis.shape[2])
        fits = fits and (fiber is None or fiber.shape == (orientations, orientations, channels))
        fits = fits and (bias is None or bias.shape == (channels,))
    if not fits:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())
        raise ValueError(
            f"shapes are {shapes}, with {len(edges.senders)} edges among {len(edges.offsets) - 1} points; allowed are "
            f"features (N, O, C), basis (E, O, B) or (E, O/2, B), weight (C, B), fiber (O, O, C) and bias (C,)"
        )
