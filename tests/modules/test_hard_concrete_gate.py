"""Gates on layers: noise that resumes and agrees, evaluation, and bad input."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_weights.functional.hard_concrete import hard_concrete_gate
from lightning_weights.modules import HardConcreteGate, find_parametrizations

LAYERS = {"linear": (nn.Linear(6, 4), (3, 6)), "convolution": (nn.Conv2d(2, 4, 3), (3, 2, 5, 5))}


def gated(layer):
    layer = copy.deepcopy(layer)
    gate = HardConcreteGate(4)
    parametrize.register_parametrization(layer, "weight", gate)
    return layer, gate


@pytest.mark.parametrize("kind", LAYERS)
def test_every_filter_has_its_gate(kind):
    plain, shape = LAYERS[kind]
    layer, gate = gated(plain)
    with torch.no_grad():
        gate.log_alpha.copy_(torch.tensor([-9.0, -1.0, 0.5, 9.0]))
    layer.eval()
    x = torch.randn(shape)
    z = hard_concrete_gate(gate.log_alpha).view(4, *(1,) * (len(shape) - 2))
    bias = plain.bias.view_as(z)
    torch.testing.assert_close(layer(x), (plain(x) - bias) * z + bias, atol=1e-6, rtol=1e-5)
    assert torch.equal(layer(x), layer(x))


def test_training_draws_once_per_use_and_learns():
    layer, gate = gated(nn.Linear(6, 4))
    used = int(gate.draws)
    first, second = layer(torch.ones(2, 6)), layer(torch.ones(2, 6))
    assert int(gate.draws) == used + 2
    torch.testing.assert_close(first[0], first[1])  # one gate for the whole batch
    assert not torch.equal(first, second)
    with torch.no_grad():
        gate.log_alpha.zero_()
    for _ in range(10):
        layer(torch.ones(2, 6)).sum().backward()
    assert (gate.log_alpha.grad != 0).all()


def test_noise_resumes_from_the_state():
    layer, _ = gated(nn.Linear(6, 4))
    layer(torch.ones(1, 6))
    other, _ = gated(nn.Linear(6, 4))
    other.load_state_dict(layer.state_dict())
    copied = pickle.loads(pickle.dumps(layer.state_dict()))
    assert {"parametrizations.weight.0.seed", "parametrizations.weight.0.draws"} <= copied.keys()
    state = torch.get_rng_state()
    for _ in range(3):
        assert torch.equal(layer(torch.ones(1, 6)), other(torch.ones(1, 6)))
    assert torch.equal(torch.get_rng_state(), state)


def test_empirical_share_of_closed_gates():
    gate = HardConcreteGate(20_000)
    with torch.no_grad():
        gate.log_alpha.fill_(0.3)
    closed = torch.cat([gate.sample(gate.next_noise()) == 0 for _ in range(5)]).double().mean()
    assert closed.item() == pytest.approx(1 - gate.keep_probability()[0].item(), abs=5e-3)


def test_compiles_whole_and_draws_the_same():
    layer, gate = gated(nn.Linear(6, 4))
    x, start = torch.randn(2, 6), int(gate.draws)
    want = [layer(x), layer(x)]
    gate.draws.fill_(start)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for expected in want:
        torch.testing.assert_close(compiled(x), expected)
    assert int(gate.draws) == start + 2


def test_low_precision_and_autocast_keep_gates_in_fp32():
    gate = HardConcreteGate(4)
    with torch.autocast("cpu", torch.bfloat16):
        assert gate.sample(gate.next_noise()).dtype == torch.float32
    assert gate(torch.ones(4, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_start_and_clamp():
    gate = HardConcreteGate(1000, droprate_init=0.2)
    assert gate.log_alpha.mean().item() == pytest.approx(math.log(4), abs=2e-3)
    assert gate.log_alpha.std().item() == pytest.approx(0.01, rel=0.2)
    with torch.no_grad():
        gate.log_alpha[:2] = torch.tensor([-50.0, 50.0])
    gate.clamp()
    assert gate.log_alpha[:2].tolist() == pytest.approx([-math.log(100), math.log(100)])


def test_finding():
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4))
    gate = HardConcreteGate(4)
    parametrize.register_parametrization(network[2], "weight", gate)
    assert list(find_parametrizations(network, HardConcreteGate)) == [("2", network[2], "weight", gate)]
    assert list(find_parametrizations(network, nn.Linear)) == []


@pytest.mark.parametrize(
    ("argument", "value"),
    [("size", 0), ("droprate_init", 0.0), ("droprate_init", 1.0), ("temperature", 0.0), ("gamma", 0.0), ("zeta", 1.0)],
)
def test_bad_input(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value}"):
        HardConcreteGate(**{"size": 4, argument: value})
