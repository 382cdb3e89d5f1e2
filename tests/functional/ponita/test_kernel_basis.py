"""Basis functions of invariants: monomials, window, and a layer that keeps half as much."""

import pytest
import torch
from torch.nn import functional as F

from lightning_weights.functional.ponita import (
    gelu_linear,
    kernel_basis,
    num_polynomial_features,
    polynomial_cutoff,
    polynomial_features,
)
from lightning_weights.kernels.fiber_conv.basis import FEW


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_monomials(degree):
    attributes = torch.randn(5, 3, dtype=torch.float64)
    features = polynomial_features(attributes, degree)
    assert features.shape == (5, num_polynomial_features(3, degree))
    a, b, c = attributes.unbind(-1)
    for monomial in (a, b, c, *([a * b, c * c] if degree > 1 else []), *([a * b * c * c] if degree > 3 else [])):
        assert torch.isclose(features, monomial[:, None]).all(0).any()


@pytest.mark.parametrize("power", [2, 6])
def test_the_window_ends_smoothly(power):
    radius = 2.5
    u = torch.tensor([0.0, radius, 0.7 * radius], dtype=torch.float64, requires_grad=True)
    inside = u.detach() - torch.tensor([0.0, 1e-6, 0.0], dtype=torch.float64)
    inside.requires_grad_()
    window = polynomial_cutoff(inside, radius, power)
    (first,) = torch.autograd.grad(window.sum(), inside, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), inside)
    torch.testing.assert_close(window[:2], torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-12)
    assert first[1].abs() < 1e-9
    assert second[1].abs() < 1e-3
    assert 0 < window[2] < 1
    assert not polynomial_cutoff(torch.tensor([2.5, 7.0]), radius, power).any()


def pieces(dtype=torch.float64):
    shapes = ((6, 14), (6,), (4, 6), (4,))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def plain(attributes, parameters, window):
    first, first_bias, second, second_bias = parameters
    hidden = F.gelu(polynomial_features(attributes, 3) @ first.T + first_bias)
    return window * F.gelu(hidden @ second.T + second_bias)


def test_value_and_two_derivatives_are_those_of_the_composition():
    attributes = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    window = torch.rand(3, 1, 1, dtype=torch.float64, requires_grad=True)
    parameters, found = pieces(), []
    leaves = [attributes, window, *parameters]
    for function in (
        lambda: kernel_basis(attributes, parameters, degree=3, window=window),
        lambda: plain(attributes, parameters, window),
    ):
        value = function()
        once = torch.autograd.grad(value.square().sum(), leaves)
        slopes = torch.autograd.grad(function().square().sum(), leaves, create_graph=True)
        twice = torch.autograd.grad(sum(slope.square().sum() for slope in slopes), leaves)
        found.append([value, *once, *twice])
    for ours, want in zip(*found, strict=True):
        torch.testing.assert_close(ours, want)


def test_only_wanted_gradients():
    attributes, parameters = torch.randn(9, 2, dtype=torch.float64), pieces()
    parameters[2].requires_grad_(False)
    value = kernel_basis(attributes, parameters, degree=3)
    assert value.requires_grad
    value.sum().backward()
    assert parameters[2].grad is None
    assert parameters[0].grad.any()
    with torch.no_grad():
        assert not kernel_basis(attributes, parameters, degree=3).requires_grad


def test_rows_go_in_chunks_if_there_are_many():
    parameters, kept, values = pieces(), [], []
    attributes = torch.randn(FEW + 1, 2, dtype=torch.float64)
    for rows in (attributes, attributes[:-1]):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, own=saved: own.append(x) or x, lambda x: x):
            values.append(kernel_basis(rows, parameters, degree=3))
        kept.append(sum(tensor.numel() for tensor in saved))
    assert kept[0] < kept[1]  # of one row more
    torch.testing.assert_close(values[0][:-1], values[1])


def test_no_rows():
    assert kernel_basis(torch.zeros(0, 4, 2).double(), pieces(), degree=3).shape == (0, 4, 4)


def test_mixed_precision_is_that_of_a_linear_layer():
    rows, weight, bias = torch.randn(10, 3), torch.randn(2, 3, requires_grad=True), torch.randn(2, requires_grad=True)
    found = []
    for function in (gelu_linear, lambda x, *others: F.linear(F.gelu(x.bfloat16()), *others)):
        with torch.autocast("cpu", torch.bfloat16):
            value = function(rows, weight, bias)
        found.append([value, *torch.autograd.grad(value.float().sum(), (weight, bias))])
    for ours, want in zip(*found, strict=True):
        assert ours.dtype == want.dtype
        torch.testing.assert_close(ours, want)


def test_what_lies_between_is_not_kept():
    saved = []
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((50, 30), (2, 30), (2,))]
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        value = gelu_linear(*leaves)
    assert sum(tensor.numel() for tensor in saved) == sum(leaf.numel() for leaf in leaves)
    assert torch.autograd.gradcheck(
        gelu_linear, [leaf.double().detach().requires_grad_() for leaf in (leaves[0][:2], *leaves[1:])]
    )
    assert value.shape == (50, 2)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: polynomial_features(torch.ones(2), 0), "degree is 0"),
        (lambda: num_polynomial_features(0, 2), "num_attributes is 0"),
        (lambda: polynomial_cutoff(torch.ones(2), -1.0), "radius is -1.0"),
        (lambda: polynomial_cutoff(torch.ones(2), 1.0, 1), "power is 1"),
    ],
)
def test_bad_input(function, message):
    with pytest.raises(ValueError, match=message):
        function()
