"""The perceptron against its formula in numpy."""

import copy
import pickle
import re
from collections import UserList

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

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


@pytest.mark.parametrize("sequence", [list, UserList])
def test_hidden_may_be_any_sequence(sequence):
    assert MLP(hidden=sequence([4])).head.in_features == 4


def test_dropout_acts_in_training_only():
    model, x = MLP(dropout=0.5), torch.rand(4, 64)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_without_classes_the_features_come_out():
    model, classifier, x = MLP(hidden=(6, 5), num_classes=None), MLP(hidden=(6, 5), num_classes=3), torch.randn(7, 64)
    classifier.load_state_dict(model.state_dict(), strict=False)
    assert [type(model.head), model(x).shape, model(x).min().item()] == [nn.Identity, (7, 5), 0.0]
    assert torch.equal(classifier.head(model(x)), classifier(x))


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_stands_between_linear_layer_and_relu(train):
    model, x = MLP(4, (6, 5), 3, batch_norm=True).double().train(train), torch.randn(7, 4, dtype=torch.float64)
    norms = [layer for layer in model.body if isinstance(layer, nn.BatchNorm1d)]
    linears = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    expected = x
    for linear, norm in zip(linears, norms, strict=False):
        z = expected @ linear.weight.T + linear.bias
        mean, var = (z.mean(0), z.var(0, correction=0)) if train else (norm.running_mean, norm.running_var)
        expected = ((z - mean) / (var + 1e-5).sqrt() * norm.weight + norm.bias).clamp(min=0)
    torch.testing.assert_close(model(x), expected @ linears[-1].weight.T + linears[-1].bias)


def test_names_of_weights_stay_without_batch_norm():
    """Checkpoints from before the option still load."""
    assert list(MLP(hidden=(6, 5)).state_dict()) == [
        f"{layer}.{name}" for layer in ("body.1", "body.4", "head") for name in ("weight", "bias")
    ]


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
        ({"num_classes": 2.5}, "num_classes is 2.5; allowed is a whole number in [1, inf)"),
        ({"num_classes": None, "hidden": ()}, "hidden is (); allowed is at least one width where num_classes is None"),
        ({"hidden": "12"}, "hidden is '12'; allowed is a tuple or list"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed is a finite number in [0.0, 1.0)"),
        ({"dropout": -0.1}, "dropout is -0.1; allowed is a finite number in [0.0, 1.0)"),
        ({"dropout": float("nan")}, "dropout is nan; allowed is a finite number in [0.0, 1.0)"),
        ({"dropout": None}, "dropout is None; allowed is a finite number in [0.0, 1.0)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MLP(**arguments)
