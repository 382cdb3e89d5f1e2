"""Which layers of a backbone patterns name, and how they repeat."""

from collections import OrderedDict

import pytest
from torch import nn

from lightning_weights.modules import adapt_layers, find_targets
from tests.helpers.edits import TARGETS, backbone


def test_repeating_layers_are_found():
    for patterns in (["fc1", "fc2"], ["fc?"], r"blocks\.\d\.fc[12]"):
        assert find_targets(backbone(), patterns) == (TARGETS, 2, "blocks")
    assert find_targets(backbone(), "fc2") == ({"fc2": (6, 6)}, 2, "blocks")


def test_adapted_layers_are_found_under_their_own_names():
    model = backbone()
    adapt_layers(model, ["blocks.0.fc1", "blocks.1.fc1"])
    assert find_targets(model, "fc1") == ({"fc1": (6, 6)}, 2, "blocks")


def test_layers_without_numbers_are_one():
    assert find_targets(backbone(), ["embed", "head"]) == ({"embed": (4, 6), "head": (6, 4)}, 1, "")
    assert find_targets(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), "*").targets == {"0": (2, 3), "1": (3, 4)}


def test_deeper_prefixes():
    layers = nn.ModuleList(
        [nn.ModuleDict({"attn": nn.Sequential(OrderedDict(qkv=nn.Linear(4, 12)))}) for _ in range(3)]
    )
    model = nn.ModuleDict({"model": nn.ModuleDict({"layers": layers}), "head": nn.Linear(4, 2)})
    assert find_targets(model, "attn.qkv") == ({"attn.qkv": (4, 12)}, 3, "model.layers")


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"'fc3', which names no linear layer; there are embed, head, blocks.0.fc1"):
        find_targets(backbone(), ["fc1", "fc3"])
    with pytest.raises(ValueError, match="names no linear layer"):
        find_targets(backbone(), "(")
    uneven = backbone()
    uneven.blocks[1].fc1 = nn.Linear(6, 8)
    with pytest.raises(ValueError, match=r"the first has .*, and there are blocks.1 {'fc1': \(6, 8\)"):
        find_targets(uneven, "fc1")
