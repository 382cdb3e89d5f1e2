"""Edges in the order in which a convolution sums over them, and in that of its gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SortedEdges(NamedTuple):
    """A graph in compressed rows: its edges sorted by receiver, and a permutation that sorts them by sender.

    Attributes:
        senders: Sender j of each edge, of shape (E,).
        receivers: Receiver i of each edge, ascending.
        offsets: Where the edges of each receiver begin, of shape (N + 1,).
        by_sender: Edges in ascending order of their senders.
        sender_offsets: Where the edges of each sender begin in ``by_sender``, of shape (N + 1,).
        complete: For each point at which a complete graph begins, how many points that has; 0 for all others, and for
            all if anything is connected otherwise.

    Examples:
        >>> sort_edges(torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1]]), 2).complete
        tensor([2, 0])
    """

    senders: Tensor
    receivers: Tensor
    offsets: Tensor
    by_sender: Tensor
    sender_offsets: Tensor
    complete: Tensor


def sort_edges(edge_index: Tensor, num_nodes: int) -> SortedEdges:
    """Sort an edge list by receiver, then by sender, so that any order of the same edges gives the same sums.

    Args:
        edge_index: Senders and receivers of shape (2, E), int64, from 0 to N-1.
        num_nodes: Number N of points.

    Returns:
        The sorted edges.

    Examples:
        >>> edges = sort_edges(torch.tensor([[1, 0, 1], [1, 0, 0]]), 2)
        >>> edges.senders, edges.offsets, edges.by_sender
        (tensor([0, 1, 1]), tensor([0, 2, 3]), tensor([0, 1, 2]))
    """
    order = (edge_index[1] * num_nodes + edge_index[0]).argsort(stable=True)
    senders, receivers = edge_index[:, order].unbind()
    by_sender = senders.argsort(stable=True)
    # looked up, since counting would make a host wait for its device
    ends = torch.arange(num_nodes + 1, device=edge_index.device)
    offsets = torch.searchsorted(receivers.contiguous(), ends)
    return SortedEdges(
        senders.contiguous(),
        receivers.contiguous(),
        offsets,
        by_sender,
        torch.searchsorted(senders[by_sender], ends),
        _complete(senders, receivers, offsets),
    )


def is_mirrored(edges: SortedEdges) -> bool:
    """Tell whether the reverse of every edge is an edge too, as often; looks, which makes a host wait for its device.

    Args:
        edges: The sorted graph.

    Returns:
        Whether it is so; then ``by_sender`` is the reverse of each edge.

    Examples:
        >>> is_mirrored(sort_edges(torch.tensor([[0, 1], [1, 0]]), 2))
        True
    """
    backwards = edges.receivers[edges.by_sender], edges.senders[edges.by_sender]
    return torch.equal(backwards[0], edges.senders) and torch.equal(backwards[1], edges.receivers)


def _complete(senders: Tensor, receivers: Tensor, offsets: Tensor) -> Tensor:
    degrees = offsets.diff()
    if not degrees.numel():
        return degrees
    points = torch.arange(len(degrees), device=degrees.device)
    firsts = torch.cat([senders, senders.new_zeros(1)])[offsets[:-1]]
    begins = firsts == points
    starts = torch.where(begins, points, 0).cummax(0).values
    # a point's senders are in a row from the latest start, as many as begin there, and all beginnings cover all points
    in_a_row = senders - torch.arange(len(senders), device=senders.device) == (firsts - offsets[:-1])[receivers]
    fits = (firsts == starts) & (degrees == degrees[starts]) & (points < starts + degrees)
    sizes = torch.where(begins, degrees, 0)
    return torch.where(in_a_row.all() & fits.all() & (sizes.sum() == len(degrees)), sizes, 0)
