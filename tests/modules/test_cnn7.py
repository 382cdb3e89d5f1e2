"""CNN-7 against its list of layers and against functional torch."""

import re
from collections import UserList

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_weights.modules import CNN7


def convolutions(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def test_layers_are_those_of_the_paper():
    with torch.device("meta"):
        model = CNN7()
    assert [(c.in_channels, c.out_channels, *c.stride) for c in convolutions(model)] == [
        (3, 64, 1, 1),
        (64, 64, 1, 1),
        (64, 128, 2, 2),
        (128, 128, 1, 1),
        (128, 128, 1, 1),
    ]
    hidden = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 5 + [nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(layer) for layer in model.body] == hidden
    assert (model.body[16].weight.shape, model.head.weight.shape) == ((512, 128 * 16 * 16), (10, 512))


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("strides", [(1, 1, 2, 1, 1), (1, 1, 2, 1, 2), (3, 1, 2, 1, 1)])
def test_forward_is_the_composition(batch_norm, strides):
    model = CNN7(2, 7, 3, width=4, linear_size=6, batch_norm=batch_norm, strides=strides).double()
    x = torch.randn(5, 2, 7, 7, dtype=torch.float64)
    weights = [(layer.weight, layer.bias) for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    expected = x
    for (weight, bias), stride in zip(weights[:5], strides, strict=True):
        expected = functional.conv2d(expected, weight, bias, stride, padding=1)
        expected = functional.batch_norm(expected, None, None, training=True) if batch_norm else expected
        expected = expected.clamp(min=0)
    expected = expected.flatten(1) @ weights[5][0].T + weights[5][1]
    expected = functional.batch_norm(expected, None, None, training=True) if batch_norm else expected
    expected = expected.clamp(min=0) @ weights[6][0].T + weights[6][1]
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels is 0; allowed is a whole number in [1, inf)"),
        ({"image_size": 8.0}, "image_size is 8.0; allowed is a whole number in [1, inf)"),
        ({"num_classes": None}, "num_classes is None; allowed is a whole number in [1, inf)"),
        ({"width": -1}, "width is -1; allowed is a whole number in [1, inf)"),
        ({"linear_size": "512"}, "linear_size is '512'; allowed is a whole number in [1, inf)"),
        ({"strides": (1, 1, 2)}, "strides is (1, 1, 2); allowed are five whole numbers"),
        ({"strides": 2}, "strides is 2; allowed are five whole numbers"),
        ({"strides": (1, 1, 0, 1, 1)}, "strides[2] is 0; allowed is a whole number in [1, inf)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CNN7(**arguments)


def test_strides_may_be_any_sequence():
    model = CNN7(1, 8, width=2, linear_size=4, strides=UserList([1, 1, 2, 1, 2]))
    assert [c.stride for c in convolutions(model)][-1] == (2, 2)
