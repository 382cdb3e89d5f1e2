"""A layer that grows: what stays, what is new, and what happens to copies, checkpoints and optimizers."""

import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.tensor import DTensor

from lightning_weights.errors import ShardedParameterError
from lightning_weights.modules import IncrementalLinear

COPIERS = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}


@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), bias=st.booleans(), seed=st.integers(0, 99))
def test_growing_keeps_every_bit_of_old_rows_and_old_logits_up_to_rounding(sizes, bias, seed):
    torch.manual_seed(seed)
    layer, x = IncrementalLinear(6, bias=bias), torch.randn(3, 6)
    for n in sizes:
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        rows, logits = layer.out_features, layer(x)
        layer.grow(n)
        assert layer(x).shape == (3, rows + n)
        # a matrix product of another size may round in another order
        torch.testing.assert_close(layer(x)[:, :rows], logits, rtol=1e-6, atol=1e-6)
        assert all(torch.equal(value[:rows], before[name]) for name, value in layer.state_dict().items())


def test_fresh_rows_are_those_of_a_fresh_linear_layer():
    layer = IncrementalLinear(6, 2, bias=True)
    torch.manual_seed(3)
    layer.grow(4)
    torch.manual_seed(3)
    fresh = nn.Linear(6, 4)
    assert torch.equal(layer.weight[2:], fresh.weight)
    assert torch.equal(layer.bias[2:], fresh.bias)


def test_it_is_a_linear_layer_with_the_same_state_dict():
    layer, plain = IncrementalLinear(6, 3, bias=True), nn.Linear(6, 3)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(5, 6)
    assert torch.equal(layer(x), plain(x))
    assert isinstance(layer, nn.Linear)
    assert "in_features=6, out_features=3" in repr(layer)


def test_an_empty_layer_says_nothing_and_answers_with_no_logits():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = IncrementalLinear(6)
    assert layer(torch.randn(2, 6)).shape == (2, 0)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("assign", [False, True])
def test_checkpoints_of_any_size_load(size, assign):
    saved = IncrementalLinear(6, size, bias=True)
    network = nn.Sequential(nn.ReLU(), IncrementalLinear(6, 3, bias=True))
    network.load_state_dict({f"1.{name}": value for name, value in saved.state_dict().items()}, assign=assign)
    x = torch.randn(2, 6).relu()
    assert network[1].out_features == size
    assert torch.equal(network(x), saved(x))


@pytest.mark.parametrize("copier", COPIERS)
def test_copies_resize_themselves_and_not_the_original(copier):
    layer = IncrementalLinear(6, 2)
    twin = COPIERS[copier](layer)
    assert torch.equal(twin.weight, layer.weight)
    twin.load_state_dict(IncrementalLinear(6, 5).state_dict())
    assert (twin.out_features, layer.out_features) == (5, 2)
    assert len(layer.weight) == 2


def test_another_width_is_refused_as_by_a_linear_layer():
    layer = IncrementalLinear(6, 2)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        layer.load_state_dict(nn.Linear(4, 3, bias=False).state_dict())
    assert layer.out_features == 2


def test_an_optimizer_made_before_trains_the_new_rows():
    layer = IncrementalLinear(6, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer.grow(2)
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    assert torch.allclose(layer.weight, before - 0.1)


def test_growing_drops_a_gradient_of_the_old_shape():
    layer = IncrementalLinear(6, 2)
    layer(torch.ones(1, 6)).sum().backward()
    layer.grow(1)
    assert layer.weight.grad is None
    layer(torch.ones(1, 6)).sum().backward()
    assert layer.weight.grad.shape == (3, 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_new_rows_have_the_dtype_of_the_old_ones(dtype):
    layer = IncrementalLinear(6, 2).to(dtype)
    layer.grow(1)
    assert layer.weight.dtype == dtype


@pytest.mark.parametrize(("name", "arguments"), [("in_features", (0,)), ("out_features", (4, -1)), ("n", (4, 2))])
def test_sizes_are_checked(name, arguments):
    with pytest.raises(ValueError, match=name):
        IncrementalLinear(*arguments).grow(0)


def test_a_sharded_weight_is_not_grown(monkeypatch):
    layer = IncrementalLinear(6, 2)
    monkeypatch.setattr(nn.Parameter, "placements", (), raising=False)
    with pytest.raises(ShardedParameterError, match="before fully_shard"):
        layer.grow(1)
    assert hasattr(DTensor, "placements"), "what marks a sharded tensor"
    assert layer.out_features == 2
