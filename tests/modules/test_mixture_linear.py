"""Modes of a layer: graphs, messages and a warning."""

import warnings

import pytest
import torch
from torch import nn

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.modules import MixtureLinear, set_mode


def test_compiles_to_a_graph_per_mode():
    layer = MixtureLinear(4, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for mode in ("member0", "member1", "grown"):
        set_mode(layer, mode)
        x = torch.randn(2, 4 if mode == "grown" else 2)
        torch.testing.assert_close(compiled(x), layer(x))


def test_a_grown_layer_is_exported():
    layer = MixtureLinear(4, 4)
    set_mode(layer, "grown")
    x = torch.randn(2, 4)
    program = torch.export.export(layer.eval(), (x,)).module()
    torch.testing.assert_close(program(x), layer(x))


def test_wrong_modes_and_channels():
    layer = MixtureLinear(8, 6)
    with pytest.raises(ValueError, match="mode is 'member2'; allowed are 'member0'"):
        layer.mode = "member2"
    with pytest.raises(ValueError, match="in mode 'member0' takes 4 of its 8 input channels and got 8"):
        layer(torch.zeros(1, 8))
    set_mode(layer, "grown")
    with pytest.raises(ValueError, match="in mode 'grown' takes 8 of its 8 input channels and got 4"):
        layer(torch.zeros(1, 4))


def test_training_in_a_mode_that_nobody_chose_is_told_once():
    network = nn.Sequential(MixtureLinear(4, 4, split_in=False), MixtureLinear(4, 2, split_out=False))
    with pytest.warns(LightningWeightsWarning, match="MixtureGrowth"):
        network(torch.zeros(1, 4))
    chosen = nn.Sequential(MixtureLinear(4, 4, split_in=False))
    set_mode(chosen, "member0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network(torch.zeros(1, 4))
        chosen(torch.zeros(1, 4))
