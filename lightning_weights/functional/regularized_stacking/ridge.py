"""Ridge regression for a whole grid of penalties at the price of one eigendecomposition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_weights.functional.regularized_stacking.fold_grams import CrossValidation, Problem, held_out_mse
from lightning_weights.functional.regularized_stacking.linear_fit import LinearFit

RIDGE_PENALTIES = tuple(np.logspace(-3, 5, 50).tolist())


def ridge_path(problem: Problem, penalties: Tensor) -> Tensor:
    r"""Solve ridge regression for several penalties.

    $$w_\lambda = V\, (\Lambda + \lambda I)^{-1}\, V^\top X^\top y, \qquad X^\top X = V \Lambda V^\top$$

    Args:
        problem: Sums over the rows; any batch shape.
        penalties: λ > 0, of shape (L,).

    Returns:
        Weights, of shape (..., L, p).

    Examples:
        >>> problem = Problem(*(torch.tensor(v) for v in ([[4.0]], [2.0], 3.0, 2.0)))
        >>> ridge_path(problem, torch.tensor([0.0, 4.0])).squeeze(-1)
        tensor([0.5000, 0.2500])
    """
    values, vectors = torch.linalg.eigh(problem.gram)
    rotated = problem.moments.unsqueeze(-2) @ vectors
    shrunk = rotated / (values.clamp(min=0).unsqueeze(-2) + penalties[:, None])
    weights: Tensor = shrunk @ vectors.mT
    return weights


def fit_ridge(sets: CrossValidation, penalties: Sequence[float] = RIDGE_PENALTIES) -> LinearFit:
    r"""Choose ridge penalties by the inner folds, and fit.

    $$\min_{w, b} \lVert y - b - X w \rVert^2 + \lambda \lVert w \rVert^2$$

    with the λ that has the least root mean squared error, averaged over the inner folds; of equal ones, the first.

    Args:
        sets: Training sets with their inner folds.
        penalties: Grid of λ > 0.

    Returns:
        One model per training set.

    Examples:
        >>> from lightning_weights.functional.regularized_stacking.fold_grams import fold_grams
        >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> fit = fit_ridge(fold_grams(x, x[:, 0], torch.arange(60)[:, None] % 3), [0.01, 100.0])
        >>> fit.penalty.item(), fit.coefficients.shape
        (0.01, torch.Size([1, 3]))
    """
    grid = sets.whole.gram.new_tensor(list(penalties))
    scores = held_out_mse(sets.held, ridge_path(sets.inner, grid)).sqrt().mean(1)
    chosen = grid[scores.argmin(1)]
    values, vectors = torch.linalg.eigh(sets.whole.gram)
    rotated = (sets.whole.moments.unsqueeze(-2) @ vectors).squeeze(-2)
    shrunk = rotated / (values.clamp(min=0) + chosen[:, None])
    coefficients = (vectors @ shrunk.unsqueeze(-1)).squeeze(-1)
    none, exact = torch.full_like(chosen, torch.nan), torch.zeros_like(chosen)
    return LinearFit(coefficients, chosen, none, scores, exact, tolerance=0.0)
