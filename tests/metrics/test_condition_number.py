"""Condition numbers against numpy, and of gated and masked layers."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_weights.metrics import ConditionNumber
from lightning_weights.modules import HardConcreteGate, ScoreMask


def measured(network):
    metric = ConditionNumber()
    metric.update(network)
    return {name: value.item() for name, value in metric.compute().items()}


def test_numpys_numbers():
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Linear(4, 3))
    want = {name: np.linalg.cond(network[int(name)].weight.detach().flatten(1).double().numpy()) for name in "02"}
    want["geometric_mean"] = math.sqrt(want["0"] * want["2"])
    assert measured(network) == pytest.approx(want, rel=1e-6)


def test_sees_masks_and_gates_as_in_evaluation():
    layer = nn.Linear(4, 4)
    gate = HardConcreteGate(4)
    parametrize.register_parametrization(layer, "weight", gate)
    parametrize.register_parametrization(layer, "weight", ScoreMask(layer.parametrizations.weight.original, 0.6))
    layer.train()
    drawn = int(gate.draws)
    number = measured(layer)[""]
    assert int(gate.draws) == drawn
    assert layer.training
    assert number == pytest.approx(np.linalg.cond(layer.eval().weight.detach().double().numpy()), rel=1e-5)


def test_singular_layers_are_infinite():
    network = nn.Linear(4, 4)
    network.weight.data[2] = network.weight.data[1]
    assert measured(network) == {"": math.inf, "geometric_mean": math.inf}


def test_the_last_network_counts_and_reset_forgets():
    metric = ConditionNumber()
    metric.update(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    network = nn.Linear(5, 2)
    metric.update(network)
    assert metric.compute().keys() == {"", "geometric_mean"}
    assert float(metric.compute()[""]) == pytest.approx(measured(network)[""])
    metric.reset()
    with pytest.warns(UserWarning, match="called before the ``update``"):
        assert metric.compute() == {}


def test_processes_agree():
    metric = ConditionNumber()
    metric.update(nn.Linear(4, 3))
    gathered = torch.stack([metric.values, metric.values])
    assert torch.equal(metric._reductions["values"](gathered), metric.values)


def test_bad_input():
    with pytest.raises(ValueError, match="no layer with a weight"):
        ConditionNumber().update(nn.ReLU())
