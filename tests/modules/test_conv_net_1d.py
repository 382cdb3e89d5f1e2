"""The network for signals against functional torch."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from lightning_weights.modules import ConvNet1d


@settings(max_examples=15, deadline=None)
@given(in_channels=st.integers(1, 3), channels=st.integers(1, 4), layers=st.integers(1, 4), length=st.integers(1, 20))
def test_forward_is_the_composition(in_channels, channels, layers, length):
    model = ConvNet1d(in_channels, channels, layers, features=5, num_classes=3, length=length).double()
    x = torch.randn(2, in_channels, length, dtype=torch.float64)
    weights = [(layer.weight, layer.bias) for layer in model.modules() if isinstance(layer, (nn.Conv1d, nn.Linear))]
    assert len(weights) == layers + 2
    expected = x
    for index, (weight, bias) in enumerate(weights[:layers]):
        expected = functional.conv1d(expected, weight, bias, stride=2, padding=1 if index else 2).clamp(min=0)
    (weight, bias), (head, offset) = weights[layers:]
    features = (expected.flatten(1) @ weight.T + bias).clamp(min=0)
    torch.testing.assert_close(model.body(x), features)
    torch.testing.assert_close(model(x), features @ head.T + offset)


def test_a_backbone_ends_in_the_features_after_their_relu():
    model, x = ConvNet1d(), torch.randn(50, 1, 40)
    features = model(x)
    assert (features.shape, type(model.head), features.min()) == ((50, 64), nn.Identity, 0)
    classifier = ConvNet1d(num_classes=10)
    classifier.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(classifier(x), classifier.head(features))


def test_default_sizes():
    """Three convolutions of 25 channels on 40 values leave 125 numbers, as in the published network."""
    shapes = [tuple(parameter.shape) for name, parameter in ConvNet1d().named_parameters() if "weight" in name]
    assert shapes == [(25, 1, 5), (25, 25, 3), (25, 25, 3), (64, 125)]


@pytest.mark.parametrize("name", ["in_channels", "channels", "layers", "features", "num_classes", "length"])
@pytest.mark.parametrize("value", [0, 1.5, "3"])
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; allowed is a whole number in [1, inf)")):
        ConvNet1d(**{name: value})
