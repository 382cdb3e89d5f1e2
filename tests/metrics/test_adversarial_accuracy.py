"""Adversarial accuracy against networks whose worst case is known."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_weights.metrics import AdversarialAccuracy


def linear():
    """Predicts class 0 where the first input is larger than the second."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    network[1].weight.data = torch.eye(2)
    return network


def test_counts_what_no_input_of_the_box_can_change():
    x = torch.rand(200, 2)
    y = (x[:, 0] < x[:, 1]).long()
    metric = AdversarialAccuracy(epsilon=0.1, step_size=0.05, steps=5)
    metric.update(linear(), x[:50], y[:50])
    metric.update(linear(), x[50:], y[50:])
    low, high = (x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1)
    survives = torch.where(y == 0, low[:, 0] >= high[:, 1], low[:, 1] > high[:, 0])
    assert metric.compute().item() == pytest.approx(survives.double().mean().item())
    assert 0.3 < metric.compute() < 0.9


def test_restarts_only_lower_it():
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    x = torch.rand(300, 8)
    y = network(x).argmax(1)
    found = []
    for restarts in (1, 2, 8):
        metric = AdversarialAccuracy(epsilon=0.1, step_size=0.1, steps=1, restarts=restarts)
        metric.update(network, x, y)
        found.append(metric.compute().item())
    assert found[0] >= found[1] >= found[2]
    assert found[0] > found[2]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_touches_nothing(mode):
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    network[1].eval()
    network(torch.rand(3, 4)).sum().backward()
    before, gradients = copy.deepcopy(network.state_dict()), [p.grad.clone() for p in network.parameters()]
    flags = [part.training for part in network.modules()]
    metric = AdversarialAccuracy(restarts=2, steps=3)
    with mode():
        metric.update(network, torch.rand(6, 4), torch.zeros(6, dtype=torch.long))
        metric.compute()
    assert [part.training for part in network.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(network.parameters(), gradients, strict=True))


def test_takes_nothing_from_the_global_generator():
    network, x, y = linear(), torch.rand(6, 2), torch.zeros(6, dtype=torch.long)
    state, metric = torch.get_rng_state(), AdversarialAccuracy(restarts=3)
    metric.update(network, x, y)
    assert torch.equal(torch.get_rng_state(), state)


def test_states_add_up_over_processes():
    metric = AdversarialAccuracy()
    metric.update(linear(), torch.tensor([[0.9, 0.1], [0.1, 0.9]]), torch.tensor([0, 0]))
    other = AdversarialAccuracy()
    other.update(linear(), torch.tensor([[0.9, 0.1]]), torch.tensor([0]))
    assert metric._reductions["correct"] is metric._reductions["total"]
    gathered = {name: torch.stack([getattr(metric, name), getattr(other, name)]) for name in ("correct", "total")}
    assert {name: int(metric._reductions[name](both)) for name, both in gathered.items()} == {"correct": 2, "total": 3}
    metric.reset()
    with pytest.warns(UserWarning, match="called before the ``update``"):
        assert math.isnan(metric.compute())


@pytest.mark.parametrize(
    ("argument", "value"),
    [("epsilon", -0.1), ("step_size", 0), ("steps", -1), ("restarts", 0), ("seed", -1), ("clip_min", math.inf)],
)
def test_bad_input(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value}"):
        AdversarialAccuracy(**{argument: value})
