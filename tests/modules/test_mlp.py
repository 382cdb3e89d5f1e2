"""The perceptron against its formula in numpy."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.modules import MLP


@settings(max_examples=25, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 9), max_size=3),
    in_features=st.integers(1, 6),
    num_classes=st.integers(1, 5),
    batch=st.integers(1, 4),
)
def test_formula(hidden, in_features, num_classes, batch):
    model = MLP(in_features, tuple(hidden), num_classes).double()
    x = torch.randn(batch, in_features, dtype=torch.float64)
    parameters = [parameter.detach().numpy() for parameter in model.parameters()]
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))
    assert [weight.shape[0] for weight, _ in layers] == [*hidden, num_classes]
    expected = x.numpy()
    for weight, bias in layers[:-1]:
        expected = np.maximum(expected @ weight.T + bias, 0)
    weight, bias = layers[-1]
    np.testing.assert_allclose(model(x).detach(), expected @ weight.T + bias, rtol=1e-10, atol=1e-12)


def test_flattens_images():
    model, x = MLP(), torch.rand(3, 1, 8, 8)
    assert torch.equal(model(x), model(x.reshape(3, 64)))


def test_last_layer_is_the_head():
    model = MLP(hidden=(5, 6), num_classes=3)
    assert model.head.weight.shape == (3, 6)
    assert [name for name, _ in model.named_children()] == ["body", "head"]


def test_hidden_may_be_a_list():
    assert MLP(hidden=[4]).head.in_features == 4


def test_dropout_acts_in_training_only():
    model, x = MLP(dropout=0.5), torch.rand(4, 64)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(duplicate):
    model, x = MLP(), torch.rand(2, 64)
    assert torch.equal(duplicate(model)(x), model(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0}, "in_features is 0; allowed is a whole number in [1, inf)"),
        ({"in_features": "64"}, "in_features is '64'; allowed is a whole number in [1, inf)"),
        ({"hidden": (8, 0)}, "hidden[1] is 0; allowed is a whole number in [1, inf)"),
        ({"hidden": [2.5, 8]}, "hidden[0] is 2.5; allowed is a whole number in [1, inf)"),
        ({"hidden": None}, "hidden is None; allowed is a tuple or list"),
        ({"hidden": 8}, "hidden is 8; allowed is a tuple or list"),
        ({"num_classes": -1}, "num_classes is -1; allowed is a whole number in [1, inf)"),
        ({"num_classes": None}, "num_classes is None; allowed is a whole number in [1, inf)"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed is a finite number in [0.0, 1.0)"),
        ({"dropout": -0.1}, "dropout is -0.1; allowed is a finite number in [0.0, 1.0)"),
        ({"dropout": float("nan")}, "dropout is nan; allowed is a finite number in [0.0, 1.0)"),
        ({"dropout": None}, "dropout is None; allowed is a finite number in [0.0, 1.0)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MLP(**arguments)
