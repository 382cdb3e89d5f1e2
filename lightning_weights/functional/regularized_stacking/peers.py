"""Simpler ways to weigh predictors: greedy selection, and least squares without negative weights."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.errors import MissingDependencyError, check_number


def greedy_selection(predictions: Tensor, target: Tensor, rounds: int = 50) -> Tensor:
    r"""Weigh predictors by how often a greedy selection with replacement takes them.

    Every round adds the predictor with which the average of all taken so far has the least mean squared error; of equal
    ones, the first. The weights are the shares in the shortest sequence with the least error. Errors come from the Gram
    matrix of the residuals, so that a round costs O(K), whatever the number of rows.

    Args:
        predictions: Out-of-fold predictions, of shape (N, K).
        target: Targets, of shape (N,).
        rounds: Number of rounds.

    Returns:
        Weights ≥ 0 with sum 1, fp64 of shape (K,).

    Raises:
        ValueError: If ``rounds`` is no positive number.

    Source: Caruana et al. 2004, "Ensemble selection from libraries of models", ICML.

    Examples:
        >>> target = torch.tensor([0.0, 0.0, 1.0])
        >>> columns = torch.stack([target + 0.1, target - 0.1, target + 5.0], 1)
        >>> greedy_selection(columns, target, rounds=2)
        tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    check_number("rounds", rounds, low=1, whole=True)
    residuals = predictions.double() - target.double()[:, None]
    gram = residuals.T @ residuals
    own, taken, sums, power = gram.diagonal(), [], torch.zeros_like(gram[0]), 0.0
    errors = []
    for count in range(1, rounds + 1):
        candidates = (power + 2 * sums + own) / count**2
        best = int(candidates.argmin())
        power, sums = float(candidates[best]) * count**2, sums + gram[best]
        taken.append(best)
        errors.append(float(candidates[best]))
    length = errors.index(min(errors)) + 1
    return torch.tensor(taken[:length]).bincount(minlength=len(own)).to(gram) / length


def nnls_stack(predictions: Tensor, target: Tensor) -> Tensor:
    r"""Weigh predictors by least squares without an intercept and without negative weights.

    $$\min_{w \ge 0} \lVert P w - y \rVert^2$$

    The triangular factor of (P, y) takes the place of the rows.

    Args:
        predictions: Out-of-fold predictions, of shape (N, K).
        target: Targets, of shape (N,).

    Returns:
        Weights ≥ 0, fp64 of shape (K,).

    Raises:
        MissingDependencyError: If the package scipy is not installed.

    Examples:
        >>> target = torch.tensor([1.0, 2.0, 3.0])
        >>> nnls_stack(torch.stack([2 * target, -target], 1), target)
        tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    try:
        from scipy.optimize import nnls
    except ImportError as error:
        raise MissingDependencyError("scipy", "stacking", "Stacking without negative weights") from error
    table = torch.cat([predictions.double(), target.double()[:, None]], 1).cpu()
    root = torch.linalg.qr(table, mode="r").R if len(table) > table.shape[1] else table
    return torch.from_numpy(nnls(root[:, :-1].numpy(), root[:, -1].numpy())[0])
