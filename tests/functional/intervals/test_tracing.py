"""Graphs: traced once, forgotten with their network, and refused before anything has run."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_weights.functional.intervals import interval_forward
from lightning_weights.functional.intervals.chains import find_chains
from lightning_weights.functional.intervals.tracing import _graphs, traced
from tests.functional.intervals.networks import Residual, make, mlp


class Functional(nn.Module):
    """Whose graph depends on its mode."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.dropout(self.layer(x), 0.5, self.training)


def test_networks_are_traced_once():
    net = mlp()
    assert traced(net) is traced(net)
    assert traced(copy.deepcopy(net)) is not traced(net)


def test_mode_counts():
    net, x = Functional(), torch.ones(64, 4)
    training = traced(net)
    out = interval_forward(net.eval(), x, x, x)
    torch.testing.assert_close(out.clean, net.layer(x))
    assert (interval_forward(net.train(), x, x, x).clean == 0).float().mean() > 0.2
    assert traced(net.eval()) is not training


def test_exchanged_layers_count():
    net = mlp(norm=False)
    graph = traced(net)
    net[2] = nn.Tanh()
    assert traced(net) is not graph
    graph = traced(net)
    parametrize.register_parametrization(net[1], "weight", nn.Identity())
    assert traced(net) is not graph
    net.append(nn.ReLU())
    assert len(traced(net).nodes) == len(graph.nodes) + 1


def test_graphs_do_not_keep_networks_alive():
    net = make("residual")
    x = torch.zeros(2, 2, 6, 6)
    interval_forward(net, x, x, x)
    reference, known = weakref.ref(net), len(_graphs)
    del net
    gc.collect()
    assert reference() is None
    assert len(_graphs) < known


def test_networks_that_branch_on_values_are_refused():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"Branching cannot be traced by torch.fx.*register_interval_rule"):
        traced(Branching())


def test_refusal_comes_before_batch_norm_moves():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4))
    before = copy.deepcopy(net.state_dict())
    x = torch.randn(8, 4)
    with pytest.raises(
        ValueError, match=r"node '_2' .call_module LayerNorm.*register_interval_rule\(LayerNorm, rule\)"
    ):
        interval_forward(net, x, x, x)
    torch.testing.assert_close(net.state_dict(), before)


def test_values_overwritten_and_read_again_are_refused():
    class Overwriting(nn.Module):
        def forward(self, x):
            return nn.functional.relu(x, inplace=True) + x

    with pytest.raises(ValueError, match=r"node 'relu' works in place on 'x', which is read later"):
        traced(Overwriting())


def test_outputs_other_than_one_tensor_are_refused():
    class Two(nn.Module):
        def forward(self, x):
            return x, x + 1

    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="the network returns tuple"):
        interval_forward(Two(), x, x, x)


def test_outputs_must_depend_on_the_input():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return self.value

    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="does not depend on its input"):
        interval_forward(Constant(), x, x, x)


def test_chains_end_where_somebody_else_reads():
    net = Residual()
    names = [[node.name for node in chain] for chain in find_chains(traced(net), dict(net.named_modules())).values()]
    assert names == [["stem", "norm"], ["conv1", "norm1"], ["conv2", "norm2"]]
    net = mlp()
    names = [[node.name for node in chain] for chain in find_chains(traced(net), dict(net.named_modules())).values()]
    assert names == [["_1", "_2", "_3"], ["_4", "_5", "_6"], ["_7", "_8", "_9"]]

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            hidden = self.layer(x)
            return hidden.relu() + hidden

    net = Shared()
    assert find_chains(traced(net), dict(net.named_modules())) == {}


def test_rows_of_sequences_pass_linear_layers_and_norms():
    """BatchNorm1d counts channels in the second dimension, a linear layer in the last one."""
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU())
    x = torch.randn(5, 3, 3)
    torch.testing.assert_close(interval_forward(net, x, x, x).upper, net(x), rtol=1e-4, atol=1e-5)
