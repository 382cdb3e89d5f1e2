"""Edge lists against loops over all pairs."""

import itertools

import pytest
import torch

from lightning_weights.functional.ponita import (
    add_self_loops,
    check_batch,
    check_edges,
    complete_edges,
    lifted_graph,
    radius_edges,
)


def as_set(edge_index):
    pairs = list(zip(*edge_index.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert pairs == sorted(pairs, key=lambda pair: pair[::-1])
    return set(pairs)


def test_complete_graphs():
    batch = torch.tensor([0, 0, 0, 1, 3, 3])
    want = {(j, i) for j, i in itertools.product(range(6), repeat=2) if batch[j] == batch[i]}
    assert as_set(complete_edges(batch)) == want
    assert complete_edges(torch.zeros(0, dtype=torch.int64)).shape == (2, 0)


def test_neighbours_within_a_radius():
    pos, batch = torch.randn(20, 3), torch.arange(20) // 8
    distances = torch.cdist(pos, pos)
    for given in (batch, None):
        near = distances < 1.5
        if given is not None:
            near &= batch[:, None] == batch[None]
        want = {(int(j), int(i)) for j, i in near.nonzero()}
        assert as_set(radius_edges(pos, 1.5, given)) == want


def test_self_loops_and_repeated_edges():
    edge_index = torch.tensor([[0, 2, 0, 1], [1, 1, 1, 1]])
    assert as_set(add_self_loops(edge_index, 3)) == {(0, 0), (1, 1), (2, 2), (0, 1), (2, 1)}
    assert add_self_loops(torch.zeros(2, 0, dtype=torch.int64), 0).shape == (2, 0)


@pytest.mark.parametrize("points", [1, 2, 3])
def test_any_list_of_edges_becomes_sorted_with_every_loop_once(points):
    pairs = list(itertools.product(range(points), repeat=2))
    for edges in itertools.chain.from_iterable(itertools.product(pairs, repeat=count) for count in range(4)):
        edge_index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
        assert as_set(add_self_loops(edge_index, points)) == {*edges, *((point, point) for point in range(points))}


def test_lifted_graphs():
    pos = torch.randn(7, 2)
    edge_index = radius_edges(pos, 1.2)
    adjacent = {pair for pair in as_set(edge_index) if pair[0] != pair[1]}
    lifted = lifted_graph(edge_index, 7)
    points = list(zip(lifted.towards.tolist(), lifted.bases.tolist(), strict=True))
    assert set(points) == adjacent
    assert len(points) == len(adjacent)
    want = {
        (a, b)
        for a, b in itertools.product(range(len(points)), repeat=2)
        if points[a][1] == points[b][1] or (points[a][1], points[b][1]) in adjacent
    }
    pairs = list(zip(*lifted.edge_index.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == want


def test_bad_input():
    with pytest.raises(ValueError, match="no two different points"):
        lifted_graph(torch.tensor([[0, 1], [0, 1]]), 2)
    with pytest.raises(ValueError, match="batch is not sorted"):
        check_batch(torch.tensor([1, 0]), 2)
    with pytest.raises(ValueError, match="allowed is one int64 number for each of the 3 points"):
        check_batch(torch.tensor([0, 0]), 3)
    with pytest.raises(ValueError, match=r"edge_index has shape \(2, 1\) and torch.float32"):
        check_edges(torch.zeros(2, 1), 3)
    with pytest.raises(ValueError, match="points from -1 to 3; allowed are 0 to 2"):
        check_edges(torch.tensor([[-1], [3]]), 3)
    with pytest.raises(ValueError, match="radius is 0"):
        radius_edges(torch.zeros(2, 3), 0.0)
