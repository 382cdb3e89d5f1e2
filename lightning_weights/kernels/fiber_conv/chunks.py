"""Edges by the chunk, and how values get from points to edges and back: by index, or by shape in complete graphs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, product

import torch
from torch import Tensor

from lightning_weights.kernels.fiber_conv.edges import SortedEdges

CHUNK = 1 << 18  # entries of the messages that exist at once on a CPU: with their factors they fit into its cache
LARGE_CHUNK = 1 << 25  # elsewhere: enough to fill a device
SENDERS, RECEIVERS = 0, 1  # ends of an edge


@dataclass(frozen=True)
class Run:
    """Edges in a row of any graph.

    Attributes:
        edges: Which edges.
        ends: Their senders and receivers.
        shape: Number of edges.
    """

    edges: slice
    ends: tuple[Tensor, Tensor]
    shape: tuple[int, ...]

    def take(self, values: Tensor, end: int, memory: Tensor) -> Tensor:
        """Return the values of points (N, X) at one end of the edges, for which there is memory."""
        return torch.index_select(values, 0, self.ends[end], out=memory)

    def add(self, values: Tensor, end: int, messages: Tensor) -> None:
        """Add messages to the values of points at one end."""
        values.index_add_(0, self.ends[end], messages)


@dataclass(frozen=True)
class Block:
    """All edges to some points of complete graphs, which are equally large.

    Attributes:
        edges: Which edges.
        points: Senders and receivers.
        shape: Numbers of graphs, and of receivers and senders in each.
    """

    edges: slice
    points: tuple[slice, slice]
    shape: tuple[int, int, int]

    def take(self, values: Tensor, end: int, memory: Tensor) -> Tensor:
        """Return the values of points (N, X) at one end, which broadcast to the edges."""
        graphs, receivers, senders = self.shape
        shape = (graphs, 1, senders) if end == SENDERS else (graphs, receivers, 1)
        return values[self.points[end]].view(*shape, values.shape[1])

    def add(self, values: Tensor, end: int, messages: Tensor) -> None:
        """Add messages to the values of points at one end."""
        own = self.take(values, end, messages)
        own.add_(messages.sum(1 + end, keepdim=True))


def chunks(edges: SortedEdges, width: int) -> Iterator[Run | Block]:
    """Cut the edges up.

    Args:
        edges: The sorted graph.
        width: Entries of a message.

    Yields:
        Blocks where all graphs are complete, else runs.
    """
    cpu = edges.senders.device.type == "cpu"
    limit = max(1, (CHUNK if cpu else LARGE_CHUNK) // max(1, width))  # edges
    sizes = [size for size in edges.complete.tolist() if size] if cpu else []
    if not sizes:
        count = len(edges.senders)
        for start in range(0, count, limit):
            some = slice(start, min(start + limit, count))
            yield Run(some, (edges.senders[some], edges.receivers[some]), (some.stop - some.start,))
        return
    edge = point = 0
    for size, group in groupby(sizes):
        graphs, many, rows = len(list(group)), max(1, limit // size**2), min(size, max(1, limit // size))
        for first, row in product(range(0, graphs, many), range(0, size, rows)):
            shape = (min(many, graphs - first), min(rows, size - row), size)
            here, count = point + first * size, math.prod(shape)
            receivers = slice(here + row, here + row + shape[0] * shape[1])
            yield Block(slice(edge, edge + count), (slice(here, here + shape[0] * size), receivers), shape)
            edge += count
        point += graphs * size
