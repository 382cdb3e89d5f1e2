"""Weights of several regressors by their errors."""

from __future__ import annotations

from torch import Tensor


def inverse_rmse_weights(rmse: Tensor) -> Tensor:
    r"""Return weights that are inversely proportional to errors.

    $$\omega_m = \frac{1 / R_m}{\sum_n 1 / R_n}$$

    As errors of good regressors differ by little, so do their weights: it is close to a plain average.

    Args:
        rmse: Root mean squared errors > 0, shape (M,).

    Returns:
        Positive weights with sum 1, shape (M,).

    Raises:
        ValueError: If an error is zero, negative or not finite.

    Source: Mohammad and Meherab 2026, arXiv:2602.12469.

    Examples:
        >>> import torch
        >>> inverse_rmse_weights(torch.tensor([1.0, 3.0]))
        tensor([0.7500, 0.2500])
    """
    if not bool(((rmse > 0) & rmse.isfinite()).all()):
        raise ValueError(
            f"rmse is {rmse.tolist()}; allowed are positive numbers. An error of zero means that predictions are the "
            "targets themselves: not out-of-fold?"
        )
    return (1 / rmse) / (1 / rmse).sum()
