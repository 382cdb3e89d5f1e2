"""The convolution's edges: complete graphs, reverse edges, chunks, and a basis for half of the orientations."""

import math

import pytest
import torch

from lightning_weights.kernels.fiber_conv import chunks, fiber_conv, fiber_conv_reference, is_mirrored, sort_edges


def complete(*sizes):
    """Edges of complete graphs."""
    starts = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
    pairs = [
        torch.cartesian_prod(torch.arange(n), torch.arange(n)).T + start for n, start in zip(sizes, starts, strict=True)
    ]
    return torch.cat(pairs, dim=1)


def operands(edges, orientations=4, channels=3, functions=5):
    """Features, half a basis, weight, fiber kernel, bias."""
    points, count = len(edges.offsets) - 1, len(edges.senders)
    shapes = ((points, orientations, channels), (count, orientations // 2, functions), (channels, functions))
    shapes += ((orientations, orientations, channels), (channels,))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


GRAPHS = {
    "complete": complete(3, 3, 1, 4),
    "one": complete(6),
    "none": torch.zeros(2, 0, dtype=torch.int64),
    "mirrored": torch.tensor([[0, 1, 1, 2, 6], [1, 0, 2, 1, 6]]),
}


def test_complete_graphs_are_recognised():
    edge_index = complete(3, 1, 2)
    shuffled = edge_index[:, torch.randperm(edge_index.shape[1])]
    assert sort_edges(shuffled, 6).complete.tolist() == [3, 0, 0, 1, 2, 0]
    assert sort_edges(torch.zeros(2, 0, dtype=torch.int64), 0).complete.tolist() == []
    others = {
        "an isolated point": (edge_index, 7),
        "one edge missing": (edge_index[:, 1:], 6),
        "one edge twice": (torch.cat([edge_index, edge_index[:, :1]], dim=1), 6),
        "graphs that overlap": (torch.tensor([[0, 1, 2, 1, 2, 1, 2], [0, 0, 0, 1, 1, 2, 2]]), 3),
        "points that leave one out": (torch.tensor([[0, 1, 2, 1, 0, 1, 2], [0, 0, 0, 1, 2, 2, 2]]), 3),
        "other senders": (torch.tensor([[0, 2, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2]]), 3),
        "no edges": (torch.zeros(2, 0, dtype=torch.int64), 2),
    }
    for name, (some, points) in others.items():
        assert not sort_edges(some, points).complete.any(), name


def test_reverse_edges_are_found():
    for name, edge_index in GRAPHS.items():
        edges = sort_edges(edge_index, 11)
        assert is_mirrored(edges), name
        assert torch.equal(edges.senders[edges.by_sender], edges.receivers)
    assert not is_mirrored(sort_edges(torch.tensor([[0, 1, 2], [1, 2, 0]]), 3))
    assert not is_mirrored(sort_edges(torch.tensor([[0, 1, 1], [1, 0, 0]]), 2))


@pytest.mark.parametrize("size", [1 << 19, 100, 30, 1])
@pytest.mark.parametrize("graph", GRAPHS)
def test_chunks_hold_every_edge_once(graph, size, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", size)
    edges, width = sort_edges(GRAPHS[graph], 11 if graph != "one" else 6), 2
    index, found = torch.arange(float(len(edges.offsets) - 1))[:, None].repeat(1, width), [[], []]
    sums = [torch.zeros_like(index), torch.zeros_like(index)]
    start = 0
    for some in chunks.chunks(edges, width):
        assert some.edges.start == start
        start = some.edges.stop
        for number in range(some.count):
            messages = index.new_empty(*some.shape, width)
            for end in (chunks.SENDERS, chunks.RECEIVERS):
                own = torch.zeros_like(messages) + some.take(index, end)(number, messages.clone())
                found[end] += own[..., 0].flatten().long().tolist()
                some.add(sums[end], end)(number, own + 1)
            assert math.prod(some.shape) <= max(size // width, some.shape[-1])  # or the edges of one receiver
    assert found == [edges.senders.tolist(), edges.receivers.tolist()]
    for total, ends in zip(sums, (edges.senders, edges.receivers), strict=True):
        assert torch.equal(total, (index + 1) * torch.bincount(ends, minlength=len(index))[:, None])


@pytest.mark.parametrize("size", [1 << 19, 40])
@pytest.mark.parametrize("graph", GRAPHS)
def test_half_a_basis_is_a_whole_one_with_that_of_the_reverse_edges(graph, size, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", size)
    edges = sort_edges(GRAPHS[graph], 11 if graph != "one" else 6)
    given = operands(edges)
    whole = torch.cat([given[1], given[1][edges.by_sender]], dim=1)
    upstream = torch.randn_like(given[0])
    want = fiber_conv_reference(given[0], whole, *given[2:], edges=edges)
    slopes = torch.autograd.grad(want, given, upstream)
    for function in (fiber_conv, fiber_conv_reference):
        result = function(*given, edges=edges)
        torch.testing.assert_close(result, want)
        torch.testing.assert_close(torch.autograd.grad(result, given, upstream), slopes)


def test_any_order_of_derivatives_with_half_a_basis():
    edges = sort_edges(complete(2, 1), 3)
    given = operands(edges, channels=2, functions=2)
    assert torch.autograd.gradgradcheck(lambda *tensors: fiber_conv(*tensors, edges=edges), given)


def test_opcheck_with_half_a_basis():
    edges = sort_edges(complete(2, 2), 4)
    plain = [tensor.detach() for tensor in operands(edges)]
    ops = torch.ops.lightning_weights
    results = [torch.library.opcheck(ops.fiber_conv.default, (*plain, *edges))]
    arguments = (plain[0], *plain[:3], [True, True, True], *edges)
    results.append(torch.library.opcheck(ops.fiber_conv_backward.default, arguments))
    assert {outcome for result in results for outcome in result.values()} == {"SUCCESS"}


def test_a_third_of_the_orientations_is_no_half():
    edges = sort_edges(complete(2), 2)
    features, basis, weight, *_ = operands(edges, orientations=6)
    with pytest.raises(ValueError, match=r"basis \(E, O, B\) or \(E, O/2, B\)"):
        fiber_conv(features, basis[:, :2], weight, edges=edges)
