"""VGG: layers in order, sizes known from the paper, and refusals."""

import re

import pytest
import torch
from torch import nn

from lightning_weights.modules import VGG


def test_vgg16_has_as_many_weights_as_known():
    with torch.device("meta"):
        network = VGG()
    convolutions = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 13
    assert sum(p.numel() for p in network.features.parameters()) == 14_714_688
    assert [name for name in network.state_dict() if name.startswith("head")] == ["head.weight", "head.bias"]
    assert network(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_layers_come_in_order(batch_norm):
    network = VGG(in_channels=1, num_classes=3, stages=[[4, 5], [6]], batch_norm=batch_norm)
    conv = ["Conv2d", "BatchNorm2d", "ReLU"] if batch_norm else ["Conv2d", "ReLU"]
    assert [type(layer).__name__ for layer in network.features] == [*conv, *conv, "MaxPool2d", *conv]
    x = torch.rand(2, 1, 8, 12)
    features = network.features(x)
    assert features.shape == (2, 6, 4, 6)
    torch.testing.assert_close(network(x), network.head(features.flatten(2).mean(2)))


def test_activations_keep_their_size():
    torch.manual_seed(0)
    network = VGG(in_channels=8, stages=[[64] * 12])
    x = torch.randn(4, 8, 12, 12)
    assert 0.3 < network.features(x).square().mean() / x.square().mean() < 3
    assert not network.features[0].bias.any()


def test_signals():
    network = VGG(in_channels=2, stages=[[4], [6]], batch_norm=True, signals=True)
    assert [type(layer).__name__ for layer in network.features[:4]] == ["Conv1d", "BatchNorm1d", "ReLU", "MaxPool1d"]
    assert network.features(torch.zeros(3, 2, 41)).shape == (3, 6, 20)
    assert network(torch.zeros(3, 2, 41)).shape == (3, 10)


REFUSED = {
    "stages": ({"stages": [64, 128]}, "stages is [64, 128]"),
    "none": ({"stages": []}, "stages is []"),
    "empty": ({"stages": [[4], []]}, "stages is [[4], []]"),
    "width": ({"stages": [[4], [8, 0]]}, "stages[1][1] is 0"),
    "channels": ({"in_channels": 0}, "in_channels is 0"),
    "classes": ({"num_classes": 2.5}, "num_classes is 2.5"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        VGG(**arguments)
