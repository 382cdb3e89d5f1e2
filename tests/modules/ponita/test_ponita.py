"""The network: what it is equivariant under, graphs apart, forces, radius, modes and refusals."""

from types import SimpleNamespace

import pytest
import torch

from lightning_weights.functional.ponita import complete_edges, orientation_grid
from lightning_weights.modules import Ponita, PonitaOutput, graph_inputs
from tests.functional.ponita.test_orientation_grids import octahedral_rotations
from tests.modules.ponita.graphs import MODES, graphs, network, some_rotation, turned


def assert_turned(before, after, rotation, tolerance=1e-10):
    torch.testing.assert_close(after.scalars, before.scalars, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(after.vectors, before.vectors @ rotation.mT, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("pooling", ["none", "sum", "mean"])
@pytest.mark.parametrize("mode", ["pointcloud", "position"])
@pytest.mark.parametrize("dim", [2, 3])
def test_any_rotation_goes_through_without_a_grid(mode, dim, pooling):
    net, batch, rotation = network(mode, dim=dim, pooling=pooling), graphs(mode, dim=dim), some_rotation(dim)
    assert_turned(net(batch), net(turned(batch, rotation)), rotation)


@pytest.mark.parametrize("mode", ["pointcloud", "position"])
def test_single_precision_is_equivariant_to_five_digits(mode):
    net, batch, rotation = network(mode).float(), graphs(mode), some_rotation()
    assert_turned(net(batch), net(turned(batch, rotation)), rotation.float(), tolerance=1e-5)


@pytest.mark.parametrize("dim", [2, 3])
def test_any_rotation_goes_through_with_the_grid(dim):
    net, batch, rotation = network(dim=dim), graphs(dim=dim), some_rotation(dim)
    before = net(batch)
    net.grid.copy_(net.grid @ rotation.mT)
    assert_turned(before, net(turned(batch, rotation)), rotation)


def test_symmetries_of_the_grid_are_exact():
    net, batch = network(grid="platonic"), graphs()
    net.grid.copy_(orientation_grid(6, method="platonic"))  # not rounded to single precision in between
    before = net(batch)
    for rotation in [*octahedral_rotations()][::5]:
        assert_turned(before, net(turned(batch, rotation)), rotation)
    plane, batch = network(dim=2, num_orientations=5), graphs(dim=2)
    plane.grid.copy_(orientation_grid(5, dim=2))
    angle = torch.tensor(2 * torch.pi / 5, dtype=torch.float64)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    assert_turned(plane(batch), plane(turned(batch, rotation)), rotation)


def test_the_plane_knows_left_from_right():
    net, batch = network(dim=2), graphs(dim=2)
    mirror = torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    net.grid.copy_(net.grid @ mirror)
    assert (net(turned(batch, mirror)).scalars - network(dim=2)(batch).scalars).abs().max() > 1e-3


def test_a_random_grid_turns_when_it_is_told_to():
    batch = graphs()
    for random_grid, in_training, in_evaluation in (("off", 0, 0), ("train", 1, 0), ("always", 1, 1)):
        net = network(random_grid=random_grid)
        for training, changes in ((True, in_training), (False, in_evaluation)):
            net.train(training)
            assert torch.equal(net(batch).scalars, net(batch).scalars) != bool(changes)
    torch.manual_seed(3)
    first = net(batch).scalars
    torch.manual_seed(3)
    assert torch.equal(net(batch).scalars, first)


@pytest.mark.parametrize("mode", MODES)
def test_graphs_of_a_batch_know_nothing_of_each_other(mode):
    net, batch = network(mode, pooling="sum"), graphs(mode)
    whole = net(batch)
    for graph in range(2):
        own = {name: value[batch["batch"] == graph] for name, value in batch.items() if name != "batch"}
        alone = net(own)
        torch.testing.assert_close(alone.scalars[0], whole.scalars[graph])
        torch.testing.assert_close(alone.vectors[0], whole.vectors[graph])


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_edges_and_of_points_does_not_matter(mode):
    net, batch = network(mode), graphs(mode)
    edge_index = complete_edges(batch["batch"])
    want = net(batch)
    shuffled = edge_index[:, torch.randperm(edge_index.shape[1])]
    repeated = torch.cat(
        [shuffled[:, shuffled[0] != shuffled[1]], shuffled[:, :5]], dim=1
    )  # self loops come by themselves
    torch.testing.assert_close(net({**batch, "edge_index": repeated}), want)
    order = torch.cat([torch.randperm(4), 4 + torch.randperm(3)])
    permuted = net({name: value[order] for name, value in batch.items()})
    torch.testing.assert_close(permuted, PonitaOutput(*(part[order] for part in want)))


@pytest.mark.parametrize("mode", MODES)
def test_a_point_beyond_the_radius_changes_nothing(mode):
    net, batch = network(mode, radius=1.5), graphs(mode, sizes=(5,))
    del batch["batch"]
    far = {name: torch.cat([value, value[:1] + (100.0 if name == "pos" else 0.0)]) for name, value in batch.items()}
    for part, more in zip(net(batch), net(far), strict=True):
        torch.testing.assert_close(part, more[:5])


@pytest.mark.parametrize("mode", MODES)
def test_forces(mode):
    net, batch = network(mode, out_scalars=1, pooling="sum", radius=3.0), graphs(mode, sizes=(4,))

    def energy(pos):
        return net({**batch, "pos": pos}).scalars.sum()

    pos = batch["pos"].requires_grad_()
    (force,) = torch.autograd.grad(-energy(pos), pos)
    assert force.sum(0).abs().max() < 1e-10
    step = 1e-5
    for point, axis in ((0, 0), (1, 2), (3, 1)):
        shift = torch.zeros_like(pos)
        shift[point, axis] = step
        slope = (energy(pos + shift) - energy(pos - shift)) / (2 * step)
        torch.testing.assert_close(-force[point, axis], slope, rtol=1e-6, atol=1e-8)


def test_a_loss_on_forces_has_gradients():
    net, batch = network(out_scalars=1, pooling="sum"), graphs(sizes=(3,))
    parameter, pos = net.blocks[0].conv.kernel.weight, batch["pos"].requires_grad_()

    def loss():
        energy = net(batch).scalars.sum()
        return torch.autograd.grad(energy, pos, create_graph=True)[0].square().sum()

    gradients = torch.autograd.grad(loss(), [*net.parameters()], allow_unused=True)
    by_name = dict(zip((name for name, _ in net.named_parameters()), gradients, strict=True))
    assert all(g is None or g.isfinite().all() for g in gradients)
    assert by_name["basis.linear_1.weight"].any()
    with torch.no_grad():
        parameter[0, 0] += 1e-5
    high = loss().detach()
    with torch.no_grad():
        parameter[0, 0] -= 2e-5
    slope = (high - loss().detach()) / 2e-5
    torch.testing.assert_close(by_name["blocks.0.conv.kernel.weight"][0, 0], slope, rtol=1e-4, atol=1e-8)


def test_calibration_keeps_the_scale_and_happens_once():
    net, batch, seen = network(), graphs(), []
    for block in net.blocks:
        with torch.no_grad():
            block.conv.kernel.weight *= 30.0
    net.calibrate(batch)
    for block in net.blocks:
        block.conv.register_forward_hook(
            lambda layer, inputs, output: seen.append((inputs[0].std(), (output - layer.bias).std()))
        )
    before = net(batch)
    for given, made in seen:
        torch.testing.assert_close(made, given, rtol=1e-5, atol=0)
    net.calibrate(graphs(seed=1))
    torch.testing.assert_close(net(batch), before, rtol=0, atol=0)
    again = network()
    again.load_state_dict(net.state_dict())
    assert all(bool(block.conv.calibrated) for block in again.blocks)


def test_layer_scale_of_one_is_no_layer_scale():
    torch.manual_seed(0)
    without = network()
    with_scale = network(layer_scale=1.0)
    with_scale.load_state_dict(without.state_dict(), strict=False)
    torch.testing.assert_close(with_scale(graphs()), without(graphs()))


def test_readouts_pooling_and_conditions():
    batch = graphs()
    assert len(network(multiple_readouts=False).readouts) == 1
    net = network(conditioning_dim=1)
    condition = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    base, other = net({**batch, "condition": condition}), net({**batch, "condition": condition.flip(0)})
    assert (base.scalars - other.scalars).abs().max() > 1e-4
    alone = net({**{name: value[:4] for name, value in batch.items()}, "condition": condition[:1]})
    torch.testing.assert_close(alone.scalars, base.scalars[:4])
    sums, means = network(pooling="sum"), network(pooling="mean")
    means.load_state_dict(sums.state_dict())
    torch.testing.assert_close(sums(batch).scalars, means(batch).scalars * torch.tensor([[4.0], [3.0]]).double())


def test_batches_of_any_class():
    net, batch = network(), graphs()
    want = net(batch["x"], batch["pos"], None, batch["batch"], batch["vec"])
    for given in (batch, SimpleNamespace(**{**batch, "vec": batch["vec"][:, 0], "y": torch.ones(2)})):
        torch.testing.assert_close(net(given), want)
    with pytest.raises(ValueError, match="batch is a dict without tensors x and pos"):
        graph_inputs({"pos": batch["pos"]})


def test_mixed_precision_keeps_sums_and_outputs_in_single():
    net, batch = network().float(), graphs()
    want = net(batch)
    with torch.autocast("cpu", torch.bfloat16):
        got = net(batch)
    assert got.scalars.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=5e-2, atol=5e-2)
    got.scalars.sum().backward()
    assert all(parameter.grad is not None for name, parameter in net.named_parameters())


def test_state_dict_and_far_positions():
    net, batch = network().float(), graphs()
    assert "grid" in net.state_dict()
    near = {**batch, "pos": batch["pos"].round(decimals=3)}
    torch.testing.assert_close(net({**near, "pos": near["pos"] + 2.0**20}), net(near), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "position", "in_vectors": 0, "out_vectors": 1}, "know no directions"),
        ({"mode": "position", "in_vectors": 1}, "know no directions"),
        ({"num_orientations": 3}, "num_orientations is 3 .* vectors need at least 4"),
        ({"dim": 2, "num_orientations": 2}, "num_orientations is 2 .* span 1 of 2 dimensions; vectors need at least 3"),
        ({"grid": "antipodal", "num_orientations": 4}, "4 with grid='antipodal', .* span 2 of 3 .* such as 6"),
        ({"in_scalars": 0, "in_vectors": 0}, "at least one input and one output"),
        ({"radius": 0.0}, "radius is 0.0"),
        ({"degree": 0}, "degree is 0"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"mode": "grid"}, "mode is 'grid'"),
        ({"random_grid": "never"}, "random_grid is 'never'"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"layer_scale": 0.0}, "layer_scale is 0.0"),
        ({"widening_factor": 0}, "widening_factor is 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Ponita(**{"in_scalars": 1, "in_vectors": 1, "hidden_dim": 4, **options})


def test_scalars_alone_go_with_orientations_in_one_plane():
    assert Ponita(1, hidden_dim=4, grid="antipodal", num_orientations=4).grid.shape == (4, 3)


@pytest.mark.parametrize("grid", ["fibonacci", "repulsion", "antipodal", "platonic"])
def test_grids_are_on_the_device_of_the_weights(grid):
    sizes = {"hidden_dim": 4, "num_layers": 1, "num_orientations": 6 + 2 * (grid == "platonic"), "grid": grid}
    plain = Ponita(1, 1, **sizes)
    with torch.device("meta"):
        net = Ponita(1, 1, **sizes)
    assert net.grid.is_meta
    net.load_state_dict(plain.state_dict(), assign=True)
    assert torch.equal(net.grid, plain.grid)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos": torch.zeros(7, 2)}, r"pos \(7, 2\); allowed are \(N, 2\) and \(N, 3\)"),
        ({"x": torch.zeros(7, 1)}, r"scalars has shape \(7, 1\)"),
        ({"vec": torch.zeros(7, 2, 3)}, r"vectors are of shape \(7, 2, 3\); allowed are \(N, 1, 3\)"),
        ({"vec": None}, "vectors are missing"),
        ({"batch": torch.tensor([1, 0, 0, 0, 0, 0, 0])}, "batch is not sorted"),
        ({"batch": torch.zeros(7)}, "one int64 number for each of the 7 points"),
        ({"edge_index": torch.zeros(2, 1)}, "torch.float32"),
        ({"edge_index": torch.tensor([[0], [7]])}, "points from 0 to 7"),
        ({"condition": torch.zeros(2, 1)}, "conditioning_dim is 0"),
        ({"pos": torch.full((7, 3), torch.nan)}, "not finite"),
    ],
)
def test_bad_graphs(change, message):
    with pytest.raises(ValueError, match=message):
        network()({**graphs(), **change})


def test_bad_graphs_of_other_modes():
    with pytest.raises(ValueError, match="none, since in_vectors is 0"):
        network("position")(graphs())
    net, batch = network("pointcloud"), graphs()
    with pytest.raises(ValueError, match="points 0 and 1 are connected and at the same place"):
        net({**batch, "pos": batch["pos"].index_copy(0, torch.tensor([1]), batch["pos"][:1])})
    with pytest.raises(ValueError, match="no two different points"):
        net({**batch, "edge_index": torch.zeros(2, 0, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"condition is missing; allowed is \(2, 1\), a row per graph"):
        network(conditioning_dim=1)(batch)
