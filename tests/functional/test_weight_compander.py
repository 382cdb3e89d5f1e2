"""Inverse, scales and statistics of companded weights against closed forms and numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.weight_compander import (
    clipped_share,
    compand_inverse,
    kurtosis,
    near_zero_share,
    participation_ratio,
    scales_of,
    softplus_inverse,
)
from lightning_weights.kernels.compand import FUNCTIONS, LIMITS, compand

EACH = pytest.mark.parametrize("function", FUNCTIONS)


@EACH
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_inverse_of_the_function_is_the_latent(function, dtype, tolerance):
    b = 0.4
    reach = {"arctan": 20.0, "tanh": 2.5, "softsign": 20.0}[function]  # before tanh has no digits left
    latent = torch.linspace(-reach * b, reach * b, 2001, dtype=dtype)
    scales = torch.tensor([1.3], dtype=dtype), torch.tensor([b], dtype=dtype)
    back = compand_inverse(compand(latent, *scales, function), *scales, function)
    torch.testing.assert_close(back, latent, rtol=tolerance, atol=1e-7 * b)


@EACH
def test_function_of_the_inverse_is_the_weight_per_channel(function):
    weight, a, b = torch.randn(5, 2, 3, dtype=torch.float64), torch.full((5,), 9.0), torch.linspace(0.1, 2, 5)
    scales = a.double(), b.double()
    torch.testing.assert_close(compand(compand_inverse(weight, *scales, function), *scales, function), weight)
    assert not torch.allclose(
        compand_inverse(weight, *scales, function)[0], compand_inverse(weight, *scales, function)[4]
    )


@EACH
def test_weights_beyond_the_bound_are_clipped_a_little_within(function):
    a, b = torch.tensor([2.0]), torch.tensor([1.0])
    bound = 2.0 * LIMITS[function]
    weight = torch.tensor([3 * bound, -bound, 0.5, torch.inf])
    clipped = compand(compand_inverse(weight, a, b, function), a, b, function)
    torch.testing.assert_close(
        clipped, torch.tensor([0.999 * bound, -0.999 * bound, 0.5, 0.999 * bound]), rtol=1e-4, atol=0
    )
    assert clipped_share(weight, a, function) == 0.75
    assert clipped_share(torch.zeros(0), a, function) == 0.0


def test_closed_form_of_the_inverse():
    found = compand_inverse(*(torch.tensor([x], dtype=torch.float64) for x in (1.0, 2.0, 1.0)))
    assert float(found) == pytest.approx(0.5463024898437905, rel=1e-15)


def test_half_precision_is_inverted_in_single():
    weight, a, b = torch.randn(100).half() / 4, torch.tensor([1.5]), torch.tensor([1.0])
    found = compand_inverse(weight, a, b)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, compand_inverse(weight.float(), a, b).half())


def test_scales_are_standard_deviations():
    weight = torch.randn(4, 3, 5)
    a, b = scales_of(weight, 3.0, 2.0)
    np.testing.assert_allclose([float(a), float(b)], [3 * weight.numpy().std(), 2 * weight.numpy().std()], rtol=1e-6)
    a, b = scales_of(weight.half(), 3.0, 2.0, per_slice=True)
    assert a.dtype == torch.float32
    np.testing.assert_allclose(a / 3, weight.half().float().numpy().reshape(4, -1).std(axis=1), rtol=1e-5)
    assert torch.equal(scales_of(torch.ones(3, 3), 1.0, 1.0)[0], torch.zeros(1))


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-8, 1e8))
def test_softplus_inverse(value):
    rho = softplus_inverse(torch.tensor(value, dtype=torch.float64))
    assert float(torch.nn.functional.softplus(rho)) == pytest.approx(value, rel=1e-7)


def test_statistics_are_those_of_numpy():
    weight = torch.randn(40, 50)
    w = weight.double().numpy()
    assert near_zero_share(weight) == pytest.approx((abs(w) < 0.1 * w.std()).mean())
    assert near_zero_share(weight, 0.5) == pytest.approx((abs(w) < 0.5 * w.std()).mean())
    assert kurtosis(weight) == pytest.approx((w**4).mean() / (w**2).mean() ** 2, rel=1e-9)
    assert participation_ratio(weight) == pytest.approx((w**2).sum() ** 2 / (w**4).sum(), rel=1e-9)


def test_statistics_of_known_distributions():
    uniform = torch.linspace(-1, 1, 100_001)
    assert kurtosis(uniform) == pytest.approx(1.8, rel=1e-3)
    assert near_zero_share(uniform) == pytest.approx(0.1 / math.sqrt(3), rel=1e-3)
    assert participation_ratio(torch.eye(10)) == pytest.approx(10.0)
    assert math.isnan(participation_ratio(torch.zeros(3)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: scales_of(torch.ones(2), 0.0, 1.0),
        lambda: scales_of(torch.ones(2), 1.0, -1.0),
        lambda: near_zero_share(torch.ones(2), -0.1),
        lambda: compand_inverse(torch.ones(2), torch.ones(1), torch.ones(1), "cube"),
        lambda: clipped_share(torch.ones(2), torch.ones(1), "cube"),
    ],
)
def test_bad_input(call):
    with pytest.raises(ValueError, match=r"(kappa|beta|threshold|function) is .*; allowed"):
        call()
