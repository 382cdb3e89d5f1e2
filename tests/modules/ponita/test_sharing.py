"""Invariants that opposite orientations share: half as many, and the same network."""

import pytest
import torch

from lightning_weights.functional.ponita import complete_edges
from lightning_weights.modules.ponita import geometry
from tests.modules.ponita.graphs import graphs, network

OPPOSITE = {
    "platonic": {"grid": "platonic"},
    "antipodal": {"grid": "antipodal", "num_orientations": 8},
    "plane": {"dim": 2},
    "radius": {"grid": "platonic", "radius": 1.5},
    "turned": {"grid": "platonic", "random_grid": "always"},
    "conditioned": {"grid": "platonic", "conditioning_dim": 1},
}


def results(net, batch):
    """Outputs, gradients of parameters and positions, and how many orientations had invariants."""
    seen = []
    hook = net.basis.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    pos = batch["pos"].clone().requires_grad_()
    torch.manual_seed(0)
    scalars, vectors = net({**batch, "pos": pos})
    hook.remove()
    value = scalars.square().sum() + vectors.square().sum()
    slopes = torch.autograd.grad(value, [pos, *net.parameters()], create_graph=True)
    twice = torch.autograd.grad(slopes[0].square().sum(), [*net.parameters()], allow_unused=True)
    torch.manual_seed(0)
    with torch.no_grad():
        again = net(batch)
    return [scalars, vectors, *slopes, *(slope for slope in twice if slope is not None), *again], seen[0]


@pytest.mark.parametrize("name", OPPOSITE)
def test_sharing_changes_nothing(name, monkeypatch):
    options = OPPOSITE[name]
    net, batch = network(**options), graphs(dim=options.get("dim", 3))
    if "conditioning_dim" in options:
        batch["condition"] = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    shared, halved = results(net, batch)
    monkeypatch.setattr(geometry, "_is_opposite", lambda grid: False)
    whole, all_of_them = results(net, batch)
    assert all_of_them == 2 * halved == len(net.grid)
    torch.testing.assert_close(shared, whole)


@pytest.mark.parametrize(
    "options", [{}, {"grid": "platonic", "num_orientations": 4}, {"dim": 2, "num_orientations": 5}]
)
def test_other_grids_share_nothing(options):
    net = network(**options)
    assert results(net, graphs(dim=options.get("dim", 3)))[1] == len(net.grid)


def test_edges_without_their_reverse_share_nothing():
    net, batch = network(grid="platonic"), graphs()
    edge_index = complete_edges(batch["batch"])
    assert results(net, {**batch, "edge_index": edge_index})[1] == 3
    one_way = edge_index[:, edge_index[0] < edge_index[1]]
    assert results(net, {**batch, "edge_index": one_way})[1] == 6


def test_a_grid_that_was_put_in_its_place_is_looked_at():
    net, batch = network(grid="platonic"), graphs()
    net.grid.copy_(network().grid)
    assert results(net, batch)[1] == 6
