"""Graphs as edge lists: all pairs, pairs within a radius, self loops, and the graph whose points are edges."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.errors import check_number


def complete_edges(batch: Tensor) -> Tensor:
    """Connect all points of each graph with each other, and with themselves.

    Args:
        batch: Number of its graph for each point, of shape (N,), int64, ascending.

    Returns:
        Senders and receivers of shape (2, E), sorted by receiver, then by sender.

    Raises:
        ValueError: If ``batch`` is no ascending list of integers.

    Examples:
        >>> complete_edges(torch.tensor([0, 0, 1]))
        tensor([[0, 1, 0, 1, 2],
                [0, 0, 1, 1, 2]])
    """
    check_batch(batch, len(batch))
    counts = torch.bincount(batch)[batch] if len(batch) else batch
    starts = torch.searchsorted(batch, batch)
    receivers = torch.repeat_interleave(torch.arange(len(batch), device=batch.device), counts)
    before = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    within = torch.arange(len(receivers), device=batch.device) - before
    return torch.stack([starts[receivers] + within, receivers])


def radius_edges(pos: Tensor, radius: float, batch: Tensor | None = None) -> Tensor:
    r"""Connect points of the same graph that are nearer than a radius, each with itself too.

    Graphs are searched one by one, so that memory grows with the square of the largest, not of the batch.

    Args:
        pos: Positions of shape (N, n).
        radius: R > 0; pairs with \|r\| < R are connected.
        batch: Number of its graph for each point, ascending; ``None`` for one graph.

    Returns:
        Senders and receivers of shape (2, E), sorted by receiver, then by sender.

    Raises:
        ValueError: If the radius is not positive, or ``batch`` no ascending list of integers.

    Examples:
        >>> radius_edges(torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]]), radius=2.0)
        tensor([[0, 1, 0, 1, 2],
                [0, 0, 1, 1, 2]])
    """
    check_number("radius", radius, low=0.0, low_allowed=False)
    if batch is None:
        batch = torch.zeros(len(pos), dtype=torch.int64, device=pos.device)
    check_batch(batch, len(pos))
    found, start = [torch.zeros(2, 0, dtype=torch.int64, device=pos.device)], 0
    for count in torch.bincount(batch).tolist():
        own = pos[start : start + count].detach()
        squared = (own[:, None] - own[None, :]).square().sum(-1)
        receivers, senders = (squared < radius**2).nonzero(as_tuple=True)
        found.append(torch.stack([senders, receivers]) + start)
        start += count
    return torch.cat(found, dim=1)


def add_self_loops(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Connect every point with itself, and leave out repeated edges.

    Args:
        edge_index: Senders and receivers of shape (2, E).
        num_nodes: Number N of points.

    Returns:
        Senders and receivers, sorted by receiver, then by sender.

    Examples:
        >>> add_self_loops(torch.tensor([[1, 1], [0, 0]]), 2)
        tensor([[0, 1, 1],
                [0, 0, 1]])
    """
    codes = edge_index[1] * num_nodes + edge_index[0]
    loops = edge_index[0] == edge_index[1]
    # looking is cheaper than sorting, and sorting would make a host wait for its device as well
    if int(loops.sum()) == num_nodes and bool((codes[1:] > codes[:-1]).all()):
        return edge_index
    own = torch.arange(num_nodes, device=edge_index.device) * (num_nodes + 1)
    codes = torch.cat([codes, own]).unique()
    return torch.stack([codes % num_nodes, codes // num_nodes]) if num_nodes else edge_index


class LiftedGraph(NamedTuple):
    """A graph whose points are the directed edges of another one.

    Attributes:
        bases: For each lifted point, the point where it sits: the receiver of its edge.
        towards: For each lifted point, the point that its orientation looks at: the sender.
        edge_index: Senders and receivers among the lifted points.

    Examples:
        >>> lifted_graph(torch.tensor([[0, 1], [1, 0]]), 2).towards
        tensor([1, 0])
    """

    bases: Tensor
    towards: Tensor
    edge_index: Tensor


def lifted_graph(edge_index: Tensor, num_nodes: int) -> LiftedGraph:
    """Make every directed edge a point with an orientation, for exact equivariance without a grid.

    Lifted points are connected if they sit at the same point or at adjacent ones.

    Args:
        edge_index: Senders and receivers of shape (2, E), self loops included or not.
        num_nodes: Number N of points.

    Returns:
        The lifted graph, in the order of receivers, then senders.

    Raises:
        ValueError: If there are no edges between different points.

    Source: Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> lifted_graph(torch.tensor([[0, 1], [1, 0]]), 2).bases
        tensor([0, 1])
    """
    looped = add_self_loops(edge_index, num_nodes)
    towards, bases = looped[:, looped[0] != looped[1]]
    if not len(bases):
        raise ValueError(
            "edge_index connects no two different points, so that no orientation exists; point-cloud mode needs edges: "
            "use complete_edges or radius_edges with a larger radius"
        )
    counts = torch.bincount(bases, minlength=num_nodes)
    starts = counts.cumsum(0) - counts
    # every pair (j, i) of equal or adjacent points gives counts[j] times counts[i] pairs of lifted points
    senders, receivers = looped
    sizes = counts[senders] * counts[receivers]
    pair = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    within = torch.arange(len(pair), device=sizes.device) - (sizes.cumsum(0) - sizes)[pair]
    width = counts[senders[pair]]
    lifted = torch.stack([starts[senders[pair]] + within % width, starts[receivers[pair]] + within // width])
    return LiftedGraph(bases, towards, lifted)


def check_batch(batch: Tensor, num_nodes: int) -> None:
    """Check that graphs are numbered in ascending order, all points of one in a row.

    Args:
        batch: Number of its graph for each point.
        num_nodes: Number N of points.

    Raises:
        ValueError: If their number or data type is another one or, on the CPU, they are not ascending from 0.

    Examples:
        >>> check_batch(torch.tensor([0, 0, 1]), num_nodes=3)
    """
    if batch.shape != (num_nodes,) or batch.dtype != torch.int64:
        raise ValueError(
            f"batch has shape {tuple(batch.shape)} and {batch.dtype}; allowed is one int64 number for each of the "
            f"{num_nodes} points"
        )
    # elsewhere looking would make the host wait
    if num_nodes and batch.device.type == "cpu" and (bool((batch[1:] < batch[:-1]).any()) or int(batch[0]) < 0):
        raise ValueError(
            "batch is not sorted; allowed are numbers of graphs from 0, ascending: sort the points by graph"
        )


def check_edges(edge_index: Tensor, num_nodes: int) -> None:
    """Check an edge list.

    Args:
        edge_index: Senders and receivers.
        num_nodes: Number N of points.

    Raises:
        ValueError: If it is not of shape (2, E) and int64 or, on the CPU, an edge leads outside the points.

    Examples:
        >>> check_edges(torch.tensor([[0, 1], [1, 0]]), num_nodes=2)
    """
    if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        raise ValueError(
            f"edge_index has shape {tuple(edge_index.shape)} and {edge_index.dtype}; allowed is (2, E) and int64, "
            f"senders in the first row"
        )
    # elsewhere looking would make the host wait
    if edge_index.numel() and edge_index.device.type == "cpu":
        low, high = (int(value) for value in edge_index.aminmax())
        if low < 0 or high >= num_nodes:
            raise ValueError(f"edge_index has points from {low} to {high}; allowed are 0 to {num_nodes - 1}")
