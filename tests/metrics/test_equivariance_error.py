"""The equivariance error of networks whose error is known."""

import pytest
import torch

from lightning_weights.metrics import EquivarianceError
from lightning_weights.modules import PonitaOutput
from tests.modules.ponita.graphs import graphs, network


def ignorant(scalars, pos, *others):
    """Returns the first coordinate as a scalar, and a constant vector."""
    return PonitaOutput(pos[:, :1], torch.ones_like(pos)[:, None])


def turning(scalars, pos, *others):
    """Returns distances from the origin, and positions."""
    return PonitaOutput(pos.norm(dim=-1, keepdim=True), pos[:, None])


def test_what_turns_has_no_error_and_what_does_not_has_a_large_one():
    metric = EquivarianceError()
    metric.update(turning, graphs())
    assert max(metric.compute().values()) < 1e-6
    metric.reset()
    metric.update(ignorant, graphs())
    assert min(metric.compute().values()) > 0.5


def test_autocast_does_not_blur_rotations():
    metric = EquivarianceError()
    with torch.autocast("cpu", torch.bfloat16):
        metric.update(turning, graphs())
    assert max(metric.compute().values()) < 1e-6


def test_the_value_of_a_known_error():
    """A random rotation moves a vector v by 2 |v|² on average, squared."""
    metric = EquivarianceError(rotations=1000)
    metric.update(ignorant, {name: value[:4] for name, value in graphs().items()})
    assert metric.compute()["vectors"] == pytest.approx(2**0.5, rel=0.05)


@pytest.mark.parametrize("mode", ["pointcloud", "position"])
def test_exact_modes(mode):
    metric = EquivarianceError()
    net = network(mode).train()
    metric.update(net, graphs(mode))
    values = metric.compute()
    assert net.training
    assert max(values.values()) < 1e-6
    assert values["scalars"] > 0


def test_more_orientations_mean_smaller_errors():
    errors = []
    for orientations in (4, 64):
        torch.manual_seed(0)
        metric = EquivarianceError(rotations=8)
        metric.update(network(num_orientations=orientations, random_grid="train").train(), graphs())
        errors.append(metric.compute()["vectors"])
    assert errors[1] < 0.3 * errors[0]


def test_updates_add_up_with_new_rotations():
    net, first, second = network(), graphs(), graphs(seed=1)
    metric, again = EquivarianceError(), EquivarianceError()
    metric.update(net, first)
    once = metric.compute()["vectors"]
    metric.update(net, first)
    assert metric.compute()["vectors"] != once
    again.update(net, first)
    again.update(net, first)
    torch.testing.assert_close(again.compute(), metric.compute())
    metric.update(net, second)
    assert metric.compute()["vectors"] > 0


@pytest.mark.parametrize(("options", "message"), [({"rotations": 0}, "rotations is 0"), ({"seed": -1}, "seed is -1")])
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        EquivarianceError(**options)
