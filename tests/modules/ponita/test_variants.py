"""Kernels that are not separable, and convolutions that mix channels."""

import pytest
import torch

from lightning_weights.functional.ponita import bi_invariants
from lightning_weights.modules import Ponita
from lightning_weights.modules.ponita import SeparableFiberConv
from lightning_weights.modules.ponita.geometry import product_geometry
from lightning_weights.modules.ponita.graph_inputs import graph_inputs
from tests.modules.ponita.graphs import graphs, network, some_rotation, turned

VARIANTS = {"not separable": {"separable": False}, "not depthwise": {"depthwise": False}}


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_any_rotation_goes_through_with_the_grid(name, dim):
    net, batch, rotation = network(dim=dim, **VARIANTS[name]), graphs(dim=dim), some_rotation(dim)
    before = net(batch)
    net.grid.copy_(net.grid @ rotation.mT)
    after = net(turned(batch, rotation))
    torch.testing.assert_close(after.scalars, before.scalars)
    torch.testing.assert_close(after.vectors, before.vectors @ rotation.mT)


@pytest.mark.parametrize("name", VARIANTS)
def test_calibration_keeps_the_scale(name):
    net, batch, seen = network(**VARIANTS[name]), graphs(), []
    with torch.no_grad():
        net.blocks[1].conv.kernel.weight *= 30.0
    net.calibrate(batch)
    for block in net.blocks:
        block.conv.register_forward_hook(
            lambda layer, inputs, output: seen.append((inputs[0].std(), (output - layer.bias).std()))
        )
    net(batch)
    for given, made in seen:
        torch.testing.assert_close(made, given, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_graphs_of_a_batch_know_nothing_of_each_other_nor_of_what_is_far(name):
    net, batch = network(pooling="sum", radius=1.5, **VARIANTS[name]), graphs()
    whole = net(batch)
    alone = net({key: value[:4] for key, value in batch.items()})
    torch.testing.assert_close(alone.scalars[0], whole.scalars[0])
    torch.testing.assert_close(alone.vectors[0], whole.vectors[0])
    moved = {**batch, "pos": batch["pos"].index_add(0, torch.tensor([6]), torch.full((1, 3), 90.0).double())}
    again = {**batch, "pos": batch["pos"].index_add(0, torch.tensor([6]), torch.full((1, 3), 70.0).double())}
    torch.testing.assert_close(net(moved), net(again))


def test_a_convolution_that_is_not_separable_is_a_mean_over_orientations_of_sums_over_points():
    net, batch = network(separable=False), graphs(sizes=(4,))
    conv, grid, seen = net.blocks[0].conv, net.grid, []
    conv.register_forward_hook(lambda layer, inputs, output: seen.extend((inputs[0], output)))
    net(batch)
    features, result = (tensor.view(4, len(grid), -1) for tensor in seen)
    relative = batch["pos"][None] - batch["pos"][:, None]
    attributes = bi_invariants(relative[:, :, None, None], grid[:, None], grid)
    kernel = conv.kernel(net.basis(attributes))
    want = torch.einsum("ijpoc,joc->ipc", kernel, features) / len(grid) + conv.bias
    torch.testing.assert_close(result, want)


def test_a_convolution_that_mixes_channels_mixes_them_where_it_mixes_orientations():
    layer = SeparableFiberConv(3, 5, out_channels=2, depthwise=False).double()
    features, basis, fiber_basis = (torch.randn(shape).double() for shape in ((4, 6, 3), (16, 6, 5), (6, 6, 5)))
    edges = product_geometry(graph_inputs(graphs("position", sizes=(4,))), torch.eye(3)[:1].double(), None).edges
    sums = torch.einsum("ijoc,joc->ioc", layer.kernel(basis).view(4, 4, 6, 3), features)
    want = torch.einsum("opdc,noc->npd", layer.fiber_kernel(fiber_basis).view(6, 6, 2, 3), sums) / 6
    torch.testing.assert_close(layer(features, basis, fiber_basis, edges), want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "position", "separable": False}, "separable is False and depthwise True in mode 'position'"),
        ({"mode": "pointcloud", "depthwise": False}, "only mode='bundle' has orientations at every point"),
        ({"separable": False, "depthwise": False}, "allowed is one of them"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Ponita(1, hidden_dim=4, **options)
