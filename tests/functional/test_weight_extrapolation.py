"""Predictions of weights that are weighted sums of their history."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.weight_extrapolation import (
    CURVES,
    extrapolate,
    fit_coefficients,
    least_squares_coefficients,
    mean_coefficients,
    shrink_coefficients,
    task_vector_coefficients,
)

HISTORY = torch.tensor([[0.1, 0.3, 0.2, 0.5, 0.6], [1.0, -1.0, 2.0, 0.0, -2.0]], dtype=torch.float64)


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("points", [3, 5])
@pytest.mark.parametrize("step", [1.0, 0.5])
def test_curves_are_those_of_numpy(curve, points, step):
    times = np.arange(1.0, 6.0)
    at = np.log if curve == "log" else (lambda t: t)
    for row, predicted in zip(HISTORY, extrapolate(HISTORY, fit_coefficients(5, curve, points, step)), strict=True):
        fitted = np.polyfit(at(times[-points:]), row.numpy()[-points:], 2 if curve == "quadratic" else 1)
        increase = np.polyval(fitted, at(6.0)) - np.polyval(fitted, at(5.0))
        assert predicted.item() == pytest.approx(row[-1].item() + step * increase, abs=1e-6)


@pytest.mark.parametrize("curve", CURVES)
def test_curves_go_on_where_they_fit(curve):
    times = torch.arange(1.0, 7.0, dtype=torch.float64)
    line = {"linear": 2 * times - 1, "quadratic": times.square() - times, "log": 3 - times.log()}[curve]
    assert extrapolate(line[:-1], fit_coefficients(5, curve)).item() == pytest.approx(line[-1].item(), abs=1e-5)


def test_rules_by_hand():
    last, first = HISTORY[:, -1], HISTORY[:, 0]
    rules = {
        shrink_coefficients(5, 0.8): 0.8 * last,
        shrink_coefficients(5, 1.0): last,
        mean_coefficients(5): HISTORY.mean(dim=1),
        task_vector_coefficients(5, 1.3): first + 1.3 * (last - first),
        fit_coefficients(5, points=2): 2 * last - HISTORY[:, -2],
        fit_coefficients(5, points=2, step=0.5): 1.5 * last - 0.5 * HISTORY[:, -2],
    }
    for coefficients, wanted in rules.items():
        torch.testing.assert_close(extrapolate(HISTORY, coefficients), wanted, rtol=0, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    factor=st.floats(-2, 2),
    moved=st.floats(-3, 3),
    curve=st.sampled_from(CURVES),
    shape=st.lists(st.integers(1, 3), max_size=3),
)
def test_fitted_curves_move_with_the_weights(factor, moved, curve, shape):
    """Fitted curves follow any change of scale and origin, whatever the shape of the tensor."""
    rows = torch.rand(*shape, 4, dtype=torch.float64)
    coefficients = fit_coefficients(4, curve)
    wanted = factor * extrapolate(rows, coefficients) + moved
    torch.testing.assert_close(extrapolate(factor * rows + moved, coefficients), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spread", [1.0, 1e-5])
def test_least_squares_are_those_of_numpy(spread):
    """Also where values of a history are nearly equal."""
    generator = torch.Generator().manual_seed(0)
    start, steps, noise = (torch.randn(300, n, generator=generator, dtype=torch.float64) for n in (1, 4, 1))
    history = torch.cat([start, start + spread * steps.cumsum(dim=1)], dim=1)
    target = (history[:, -1:] + 0.5 * spread * steps[:, -1:] - 0.1 * start + 0.01 * spread * noise).squeeze(1)
    found = least_squares_coefficients(history, target)
    features = torch.cat([history[:, -1:], history.diff(dim=1)], dim=1).numpy()
    wanted = features @ np.linalg.lstsq(features, target.numpy(), rcond=None)[0]
    error = np.abs(extrapolate(history, found).numpy() - target.numpy()).mean()
    assert error == pytest.approx(np.abs(wanted - target.numpy()).mean(), rel=1e-6)
    assert found.dtype == torch.float64
    single = least_squares_coefficients(history.float(), target.float())
    assert single.dtype == torch.float32


def test_least_squares_of_constant_weights_keep_them():
    rows = torch.ones(10, 1) * torch.linspace(-1, 1, 10)[:, None] @ torch.ones(1, 3)
    found = least_squares_coefficients(rows, rows[:, 0])
    torch.testing.assert_close(extrapolate(rows, found), rows[:, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: extrapolate(HISTORY, torch.ones(4)), "coefficients has the shape"),
        (lambda: extrapolate(torch.tensor(1.0), torch.ones(1)), "coefficients has the shape"),
        (lambda: shrink_coefficients(0, 0.5), "snapshots is 0"),
        (lambda: shrink_coefficients(3, float("nan")), "factor is nan"),
        (lambda: mean_coefficients(0), "snapshots is 0"),
        (lambda: task_vector_coefficients(1, 2.0), "snapshots is 1"),
        (lambda: task_vector_coefficients(3, float("inf")), "scale is inf"),
        (lambda: fit_coefficients(5, "cubic"), "curve is 'cubic'; allowed are 'linear'"),
        (lambda: fit_coefficients(5, points=6), "points is 6"),
        (lambda: fit_coefficients(5, "quadratic", points=2), "points is 2"),
        (lambda: fit_coefficients(1), "snapshots is 1"),
        (lambda: fit_coefficients(5, step=float("nan")), "step is nan"),
        (lambda: least_squares_coefficients(HISTORY, torch.ones(3)), "history is .* and target"),
        (lambda: least_squares_coefficients(HISTORY[:0], torch.ones(0)), "history is .* and target"),
    ],
)
def test_odd_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
