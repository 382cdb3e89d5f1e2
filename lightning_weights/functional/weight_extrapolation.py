"""The next value of a weight as a weighted sum of its history: shrinking, averages, fitted curves, least squares."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from lightning_weights.errors import check_choice, check_number

Curve = Literal["linear", "quadratic", "log"]
CURVES = get_args(Curve)


def extrapolate(history: Tensor, coefficients: Tensor) -> Tensor:
    r"""Predict the next value of every weight.

    $$\hat\theta = \sum_i c_i w_i$$

    Args:
        history: Histories (..., S), the value after training on all data last.
        coefficients: S coefficients.

    Returns:
        Predictions (...).

    Raises:
        ValueError: If the lengths differ.

    Examples:
        >>> history = torch.tensor([[1.0, 2.0, 4.0]])
        >>> extrapolate(history, shrink_coefficients(3, 0.5)), extrapolate(history, fit_coefficients(3, points=2))
        (tensor([2.]), tensor([6.]))
    """
    if coefficients.dim() != 1 or history.dim() == 0 or history.shape[-1] != len(coefficients):
        raise ValueError(
            f"coefficients has the shape {tuple(coefficients.shape)} for a history of {tuple(history.shape)}; allowed "
            f"is one for each value of the history's last dimension"
        )
    return history @ coefficients.to(history)


def shrink_coefficients(snapshots: int, factor: float) -> Tensor:
    r"""Return the coefficients that multiply the last value, $\hat\theta = f\,\theta_0$; f = 1 keeps it.

    Args:
        snapshots: Length S ≥ 1 of a history.
        factor: Factor f.

    Returns:
        S coefficients.

    Examples:
        >>> shrink_coefficients(3, 0.8)
        tensor([0.0000, 0.0000, 0.8000])
    """
    check_number("snapshots", snapshots, low=1, whole=True)
    check_number("factor", factor, low=-math.inf, low_allowed=False)
    coefficients = torch.zeros(snapshots)
    coefficients[-1] = factor
    return coefficients


def mean_coefficients(snapshots: int) -> Tensor:
    """Return the coefficients of the mean of all snapshots, a soup of them.

    Args:
        snapshots: Length S ≥ 1 of a history.

    Returns:
        S coefficients.

    Examples:
        >>> mean_coefficients(4)
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    check_number("snapshots", snapshots, low=1, whole=True)
    return torch.full((snapshots,), 1.0 / snapshots)


def task_vector_coefficients(snapshots: int, scale: float) -> Tensor:
    r"""Return the coefficients that go on along the way from the first to the last snapshot.

    $$\hat\theta = \theta_{S-1} + \lambda\,(\theta_0 - \theta_{S-1})$$

    Args:
        snapshots: Length S ≥ 2 of a history.
        scale: Factor λ; 1 gives the last snapshot, and more goes beyond it.

    Returns:
        S coefficients.

    Examples:
        >>> task_vector_coefficients(3, 1.5)
        tensor([-0.5000,  0.0000,  1.5000])
    """
    check_number("snapshots", snapshots, low=2, whole=True)
    check_number("scale", scale, low=-math.inf, low_allowed=False)
    coefficients = torch.zeros(snapshots)
    coefficients[0], coefficients[-1] = 1.0 - scale, scale
    return coefficients


def fit_coefficients(snapshots: int, curve: Curve = "linear", points: int | None = None, step: float = 1.0) -> Tensor:
    r"""Return the coefficients of a curve fitted to the last values by least squares, one step further.

    Where the curve does not go through the last value, its increase is added to it: the prediction is
    $\hat\theta = \theta_0 + s\,\bigl(g(S+1) - g(S)\bigr)$ for the curve g over the numbers 1 … S of the snapshots.
    Two points of a line give the common $\theta_0 + s\,(\theta_0 - \theta_1)$.

    Args:
        snapshots: Length S ≥ 2 of a history.
        curve: ``linear``, ``quadratic`` or ``log`` (a + b ln t).
        points: How many of the last values are fitted, at least 2, 3 for ``quadratic``. ``None``: all.
        step: Factor s of the increase.

    Returns:
        S coefficients.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> fit_coefficients(4, points=2, step=0.5)
        tensor([ 0.0000,  0.0000, -0.5000,  1.5000])
    """
    check_choice("curve", curve, CURVES)
    terms = 3 if curve == "quadratic" else 2
    check_number("snapshots", snapshots, low=terms, whole=True)
    points = snapshots if points is None else points
    check_number("points", points, low=terms, high=snapshots + 1, whole=True)
    check_number("step", step, low=-math.inf, low_allowed=False)
    times = torch.arange(snapshots - points + 1, snapshots + 2, dtype=torch.float64)
    columns = {"linear": [times], "quadratic": [times, times.square()], "log": [times.log()]}[curve]
    basis = torch.stack([torch.ones_like(times), *columns], dim=1)
    increase = (basis[-1] - basis[-2]) @ torch.linalg.pinv(basis[:-1])
    coefficients = torch.zeros(snapshots, dtype=torch.float64)
    coefficients[-points:] = step * increase
    coefficients[-1] += 1.0
    return coefficients.float()


def least_squares_coefficients(history: Tensor, target: Tensor) -> Tensor:
    r"""Fit the coefficients to values that are known: the linear model that any network has to beat.

    $$\min_c \sum_n \bigl(w_n \cdot c - \theta_n\bigr)^2$$

    It reads the same S numbers as a fit on the last value and the S - 1 differences.

    Args:
        history: Histories (N, S).
        target: The N values that followed.

    Returns:
        S coefficients of the history's type; the shortest solution where several fit alike.

    Raises:
        ValueError: If the shapes don't fit.

    Examples:
        >>> history = torch.randn(100, 5, dtype=torch.float64)
        >>> target = history @ torch.tensor([0.0, 0.0, 0.0, -0.5, 1.5], dtype=torch.float64)
        >>> torch.allclose(extrapolate(history, least_squares_coefficients(history, target)), target)
        True
    """
    if history.dim() != 2 or target.shape != history.shape[:1] or not len(target):
        raise ValueError(
            f"history is {tuple(history.shape)} and target {tuple(target.shape)}; allowed are (N, S) and (N,), N ≥ 1"
        )
    wide = history.double()
    features = torch.cat(
        [wide.diff(dim=1), wide[:, -1:]], dim=1
    )  # the values of a slow weight are nearly equal columns
    scale = features.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    features = features / scale
    gram, moments = features.T @ features, features.T @ target.double()
    solution = torch.linalg.pinv(gram, hermitian=True) @ moments / scale
    steps, last = solution[:-1], solution[-1]
    coefficients = functional.pad(steps, (1, 0)) - functional.pad(steps, (0, 1))
    coefficients[-1] += last
    return coefficients.to(history.dtype)
