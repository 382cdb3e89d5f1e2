"""Edges by the chunk, and how values get from points to edges and back: by index, or by shape in complete graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, product

import torch
from torch import Tensor

from lightning_weights.kernels.fiber_conv.edges import SortedEdges

CHUNK = 1 << 19  # entries of the messages that exist at once on a CPU: with their factors they fit into its cache
LARGE_CHUNK = 1 << 25  # elsewhere: enough to fill a device
SENDERS, RECEIVERS = 0, 1  # ends of an edge
Take = Callable[[int, Tensor], Tensor]
Add = Callable[[int, Tensor], object]


@dataclass(frozen=True)
class Runs:
    """Edges in a row of any graph, in equal chunks.

    Attributes:
        edges: Which edges.
        ends: Their senders and receivers.
        count: Number of chunks.
        shape: Number of edges in each.
    """

    edges: slice
    ends: tuple[Tensor, Tensor]
    count: int
    shape: tuple[int, ...]

    def take(self, values: Tensor, end: int) -> Take:
        """Return what copies the values of points (N, X) at one end of a chunk's edges into memory given for them."""
        places = self.ends[end].split(self.shape[0])
        return lambda number, memory: torch.index_select(values, 0, places[number], out=memory)

    def add(self, values: Tensor, end: int) -> Add:
        """Return what adds a chunk's messages to the values of points at one end."""
        places = self.ends[end].split(self.shape[0])
        return lambda number, messages: values.index_add_(0, places[number], messages)


@dataclass(frozen=True)
class Blocks:
    """All edges to some points of complete graphs, which are equally large, in equal chunks.

    Attributes:
        edges: Which edges.
        points: Senders and receivers; the same senders for all chunks if those are parts of one graph.
        count: Number of chunks.
        shape: Numbers of graphs in each, and of receivers and senders in each of those.
    """

    edges: slice
    points: tuple[slice, slice]
    count: int
    shape: tuple[int, int, int]

    def take(self, values: Tensor, end: int) -> Take:
        """Return what looks up the values of points (N, X) at one end, which broadcast to a chunk's edges."""
        views = self._views(values, end)
        return lambda number, memory: views[number]

    def add(self, values: Tensor, end: int) -> Add:
        """Return what adds a chunk's messages to points at one end, which are zero, or puts them there if all come."""
        views, (_, receivers, senders) = self._views(values, end), self.shape
        if end == RECEIVERS or receivers == senders:
            return lambda number, messages: torch.sum(messages, 1 + end, keepdim=True, out=views[number])
        return lambda number, messages: views[number].add_(messages.sum(1 + end, keepdim=True))

    def _views(self, values: Tensor, end: int) -> tuple[Tensor, ...]:
        graphs, receivers, senders = self.shape
        shape = (graphs, 1, senders) if end == SENDERS else (graphs, receivers, 1)
        own = values[self.points[end]].view(-1, *shape, values.shape[1])
        return own.expand(self.count, *own.shape[1:]).unbind()


def chunks(edges: SortedEdges, width: int) -> Iterator[Runs | Blocks]:
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
    if sizes:
        yield from _blocks(sizes, limit)
        return
    for some, count, length in _equal(len(edges.senders), limit):
        yield Runs(some, (edges.senders[some], edges.receivers[some]), count, (length,))


def _blocks(sizes: list[int], limit: int) -> Iterator[Blocks]:
    edge = point = 0
    for size, group in groupby(sizes):
        graphs, many = len(list(group)), limit // size**2
        if many:
            for some, count, length in _equal(graphs, many):
                own = _shifted(some, point, size)
                yield Blocks(_shifted(some, edge, size**2), (own, own), count, (length, size, size))
        else:  # too large a graph for one chunk: some of its receivers at a time
            for graph, (some, count, length) in product(range(graphs), _equal(size, max(1, limit // size))):
                first, start = point + graph * size, edge + graph * size**2
                ends = slice(first, first + size), _shifted(some, first, 1)
                yield Blocks(_shifted(some, start, size), ends, count, (1, length, size))
        edge += graphs * size**2
        point += graphs * size


def _equal(count: int, most: int) -> Iterator[tuple[slice, int, int]]:
    """Cut a row of things into pieces of the greatest length allowed, and the rest; yield places, number and length."""
    whole = count - count % most
    for start, stop, length in ((0, whole, most), (whole, count, count - whole)):
        if stop > start:
            yield slice(start, stop), (stop - start) // length, length


def _shifted(some: slice, start: int, step: int) -> slice:
    return slice(start + step * some.start, start + step * some.stop)
