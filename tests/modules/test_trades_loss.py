"""The TRADES loss: order of forwards, side effects, limits."""

import copy
from collections import UserList

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_weights.modules import HardConcreteGate, TradesLoss


class Watched(nn.Sequential):
    """Records mode and inputs of every forward."""

    def forward(self, x):
        self.__dict__.setdefault("calls", []).append((self.training, x.detach().clone()))
        return super().forward(x)


def network():
    return Watched(nn.Flatten(), nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def batch():
    return torch.rand(6, 8), torch.tensor([0, 1, 2, 0, 1, 2])


def test_three_training_forwards_around_the_attack():
    net, (x, y) = network(), batch()
    TradesLoss(steps=4, epsilon=0.1)(net, x, y).backward()
    assert [training for training, _ in net.calls] == [True, *[False] * 5, True, True]
    inputs = [seen for training, seen in net.calls if training]
    assert torch.equal(inputs[0], x)
    assert 0 < (inputs[1] - x).abs().max() <= 0.1 + 1e-6
    assert torch.equal(inputs[2], x)


def test_attack_leaves_gradients_statistics_and_flags():
    net, (x, y) = network(), batch()
    net[2].eval()
    nn.functional.cross_entropy(net(x), y).backward()
    before, gradients = copy.deepcopy(net.state_dict()), [p.grad.clone() for p in net.parameters()]
    attacked = TradesLoss(steps=3).attack(net, x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert [part.training for part in net] == [True, True, False, True, True]
    assert (attacked - x).abs().max() <= 8 / 255 + 1e-6


def test_gates_draw_three_times():
    net, (x, y) = network(), batch()
    gate = HardConcreteGate(16)
    parametrize.register_parametrization(net[1], "weight", gate)
    drawn = int(gate.draws)
    TradesLoss(steps=3)(net, x, y)
    assert int(gate.draws) == drawn + 3


def test_without_steps_and_weight_it_is_cross_entropy():
    net, (x, y) = network().eval(), batch()
    loss = TradesLoss(steps=0, beta=0.0)(net, x, y)
    assert torch.equal(loss, nn.functional.cross_entropy(net(x), y))


def test_gradients_are_those_of_the_equation():
    net, (x, y) = network().eval(), batch()
    noise = torch.randn_like(x)
    trades = TradesLoss(steps=3, beta=2.0)
    loss = trades(net, x, y, noise)
    attacked = trades.attack(net, x, noise)
    p, q = net(x).softmax(1), net(attacked).softmax(1)
    want = nn.functional.cross_entropy(net(x), y) + 2.0 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loss, want)
    parameters = list(net.parameters())
    for got, expected in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(want, parameters), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)


def test_sequences_of_any_kind_become_lists():
    trades = TradesLoss(epsilon=(0.1, 0.2), clip_min=UserList([-1.0, -2.0]), clip_max=[1.0, 2.0])
    assert (trades.epsilon, trades.clip_min, trades.clip_max) == ([0.1, 0.2], [-1.0, -2.0], [1.0, 2.0])
    x = torch.zeros(3, 2, 4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    moved = (trades.attack(net, x) - x).abs()
    assert (moved.amax(dim=(0, 2)) <= torch.tensor([0.1, 0.2]) + 1e-6).all()


@pytest.mark.parametrize(
    ("argument", "value"),
    [("epsilon", -0.1), ("step_size", 0.0), ("steps", -1), ("steps", 1.5), ("beta", -1.0), ("clip_max", float("nan"))],
)
def test_bad_input(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is"):
        TradesLoss(**{argument: value})


def test_bad_lists():
    with pytest.raises(ValueError, match="epsilon is empty"):
        TradesLoss(epsilon=[])
    with pytest.raises(ValueError, match=r"step_size\[1\] is 0"):
        TradesLoss(step_size=[0.1, 0.0])
