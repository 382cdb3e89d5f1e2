"""What all layers share in one forward pass: lifted points, their graph, orientations and invariants."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.functional.ponita import (
    add_self_loops,
    bi_invariants,
    complete_edges,
    lift,
    lifted_graph,
    polynomial_cutoff,
    radius_edges,
    safe_norm,
)
from lightning_weights.kernels.fiber_conv import SortedEdges, is_mirrored, sort_edges
from lightning_weights.modules.ponita.graph_inputs import GraphInputs, graph_of_points


class Geometry(NamedTuple):
    """Points as the layers see them.

    Attributes:
        features: Lifted scalars and vectors, (N', O, c).
        edges: The sorted graph of the lifted points.
        attributes: Invariants of its edges, (E', O, q), or (E', O/2, q) if the others are those of the reverse edges.
        window: Window of its edges, (E', 1, 1), if there is a radius.
        fiber_attributes: Invariants of pairs of orientations, (O, O, 1), if points have a grid.
        orientations: The grid (O, n), or an orientation (N', 1, n) for each lifted point; ``None`` for bare positions.
        bases: Point under each lifted point, if they differ.
    """

    features: Tensor
    edges: SortedEdges
    attributes: Tensor
    window: Tensor | None
    fiber_attributes: Tensor | None
    orientations: Tensor | None
    bases: Tensor | None


def find_edges(inputs: GraphInputs, radius: float | None, restrict: bool) -> Tensor:
    """Return the graph, with self loops: given, within the radius, or complete.

    Args:
        inputs: The graphs.
        radius: Radius, if the network has one.
        restrict: Whether given edges longer than the radius are left out.
    """
    batch = graph_of_points(inputs)
    if inputs.edge_index is None:
        return complete_edges(batch) if radius is None else radius_edges(inputs.pos, radius, batch)
    edge_index = inputs.edge_index
    if restrict and radius is not None:
        senders, receivers = edge_index
        near = (inputs.pos[senders] - inputs.pos[receivers]).detach().square().sum(-1) < radius**2
        edge_index = edge_index[:, near]
    return add_self_loops(edge_index, len(inputs.pos))


def bundle_geometry(inputs: GraphInputs, grid: Tensor, radius: float | None) -> Geometry:
    """Give every point the same orientations.

    Args:
        inputs: The graphs.
        grid: Orientations (O, n).
        radius: End of the window, or ``None``.
    """
    edges = sort_edges(find_edges(inputs, radius, restrict=False), len(inputs.pos))
    relative = _displacements(inputs.pos, edges, grid.dtype)
    seen = grid
    if _is_opposite(grid) and (inputs.edge_index is None or is_mirrored(edges)):
        seen = grid[: len(grid) // 2]  # what the others see is seen from the other end
    attributes = bi_invariants(relative[:, None], seen)
    features = lift(_scalars(inputs, grid.dtype), _vectors(inputs, grid.dtype), grid)
    fiber_attributes = (grid[:, None] * grid).sum(-1, keepdim=True)  # a product of matrices could round to TF32
    attributes = _conditioned(attributes, inputs, edges.receivers)
    return Geometry(features, edges, attributes, _window(relative, radius), fiber_attributes, grid, None)


def product_geometry(inputs: GraphInputs, grid: Tensor, radius: float | None) -> Geometry:
    """Make every pair of a point and an orientation a point, whose edges lead to all pairs of connected points.

    Args:
        inputs: The graphs.
        grid: Orientations (O, n).
        radius: End of the window, or ``None``.
    """
    count, own = len(grid), torch.arange(len(grid), device=grid.device)
    senders, receivers = find_edges(inputs, radius, restrict=False)
    lifted = [senders[:, None, None] * count + own, receivers[:, None, None] * count + own[:, None]]
    edge_index = torch.stack([ends.flatten() for ends in torch.broadcast_tensors(*lifted)])
    edges = sort_edges(edge_index, count * len(inputs.pos))
    bases = torch.arange(len(inputs.pos), device=grid.device).repeat_interleave(count)
    relative = (inputs.pos[bases[edges.senders]] - inputs.pos[bases[edges.receivers]]).to(grid.dtype)
    looks = [grid[ends % count] for ends in (edges.receivers, edges.senders)]
    attributes = _conditioned(bi_invariants(relative, *looks)[:, None], inputs, bases[edges.receivers])
    features = lift(_scalars(inputs, grid.dtype), _vectors(inputs, grid.dtype), grid).flatten(0, 1)[:, None]
    window = torch.full_like(relative[:, :1, None], 1 / count)  # sums over orientations are means
    if radius is not None:
        window = window * polynomial_cutoff(safe_norm(relative), radius)[:, None, None]
    return Geometry(features, edges, attributes, window, None, grid.repeat(len(inputs.pos), 1)[:, None], bases)


def position_geometry(inputs: GraphInputs, dtype: torch.dtype, radius: float | None) -> Geometry:
    """Leave points without orientations.

    Args:
        inputs: The graphs.
        dtype: Data type of the network.
        radius: End of the window, or ``None``.
    """
    edges = sort_edges(find_edges(inputs, radius, restrict=False), len(inputs.pos))
    relative = _displacements(inputs.pos, edges, dtype)
    attributes = _conditioned(bi_invariants(relative)[:, None], inputs, edges.receivers)
    features = _scalars(inputs, dtype)[:, None]
    return Geometry(features, edges, attributes, _window(relative, radius), None, None, None)


def pointcloud_geometry(inputs: GraphInputs, dtype: torch.dtype, radius: float | None) -> Geometry:
    """Make every edge a point, which looks along it.

    Args:
        inputs: The graphs.
        dtype: Data type of the network.
        radius: End of the neighbourhood and of the window, or ``None``.

    Raises:
        ValueError: If, on the CPU, two connected points are at the same place.
    """
    lifted = lifted_graph(find_edges(inputs, radius, restrict=True), len(inputs.pos))
    towards = (inputs.pos[lifted.towards] - inputs.pos[lifted.bases]).to(dtype)
    lengths = safe_norm(towards)
    if lengths.device.type == "cpu" and bool((lengths == 0).any()):
        pair = int((lengths == 0).nonzero()[0])
        raise ValueError(
            f"points {int(lifted.bases[pair])} and {int(lifted.towards[pair])} are connected and at the same place, "
            f"which is no direction; allowed are different points: merge them, or use mode='bundle'"
        )
    orientations = (towards / lengths[:, None])[:, None]
    edges = sort_edges(lifted.edge_index, len(lifted.bases))
    relative = _displacements(inputs.pos[lifted.bases], edges, dtype)
    attributes = bi_invariants(relative[:, None], orientations[edges.receivers], orientations[edges.senders])
    attributes = _conditioned(attributes, inputs, lifted.bases[edges.receivers])
    vectors = _vectors(inputs, dtype)
    features = lift(
        _scalars(inputs, dtype)[lifted.bases], None if vectors is None else vectors[lifted.bases], orientations
    )
    return Geometry(features, edges, attributes, _window(relative, radius), None, orientations, lifted.bases)


def _is_opposite(grid: Tensor) -> bool:
    """Whether the second half of the orientations are the opposites of the first."""
    count = len(grid)
    if count % 2 or grid.device.type != "cpu":  # elsewhere looking would make the host wait
        return False
    return torch.allclose(grid[: count // 2], -grid[count // 2 :], rtol=0.0, atol=8 * torch.finfo(grid.dtype).eps)


def _displacements(pos: Tensor, edges: SortedEdges, dtype: torch.dtype) -> Tensor:
    # rounded after the difference: far from the origin positions need more digits than displacements
    return (pos.index_select(0, edges.senders) - pos.index_select(0, edges.receivers)).to(dtype)


def _scalars(inputs: GraphInputs, dtype: torch.dtype) -> Tensor:
    scalars = inputs.scalars.to(dtype)
    if inputs.condition is None:
        return scalars
    return torch.cat([scalars, inputs.condition.to(dtype)[graph_of_points(inputs)]], dim=-1)


def _vectors(inputs: GraphInputs, dtype: torch.dtype) -> Tensor | None:
    return None if inputs.vectors is None else inputs.vectors.to(dtype)


def _conditioned(attributes: Tensor, inputs: GraphInputs, receivers: Tensor) -> Tensor:
    """Append the condition of an edge's graph to its invariants."""
    if inputs.condition is None:
        return attributes
    condition = inputs.condition.to(attributes.dtype)[graph_of_points(inputs)[receivers]]
    return torch.cat([attributes, condition[:, None].expand(-1, attributes.shape[1], -1)], dim=-1)


def _window(relative: Tensor, radius: float | None) -> Tensor | None:
    return None if radius is None else polynomial_cutoff(safe_norm(relative), radius)[:, None, None]
