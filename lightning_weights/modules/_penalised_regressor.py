"""What the cross-validated linear models share."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_weights.errors import LightningWeightsWarning, check_number
from lightning_weights.functional.regularized_stacking import (
    CrossValidation,
    LinearFit,
    fold_grams,
    inner_folds,
)
from lightning_weights.modules._estimator import Estimator, as_pair, as_table, like

Own = TypeVar("Own", bound="PenalisedRegressor")


class PenalisedRegressor(Estimator, ABC):
    """A linear model of standardised features whose penalty is chosen by folds of neighbouring rows."""

    estimator_type = "regressor"
    inner_folds: int

    def _check(self) -> None:
        check_number("inner_folds", self.inner_folds, low=2, whole=True)

    @abstractmethod
    def _fit_sets(self, sets: CrossValidation) -> LinearFit:
        """Choose the penalty and fit."""

    def fit(self: Own, X: Any, y: Any, groups: Any = None) -> Own:
        """Standardise the features, choose the penalty, and fit to all rows.

        Args:
            X: Features, of shape (N, p).
            y: Targets, of shape (N,).
            groups: Group of every row; whole groups are held out together.

        Raises:
            ValueError: If rows do not match, are too few, or hold NaN or inf.
        """
        self._check()
        table, target = as_pair("X", X, y)
        folds = inner_folds([torch.arange(len(table))], len(table), self.inner_folds, groups).to(table.device)
        sets = fold_grams(table, target, folds)
        fit = self._fit_sets(sets)
        self.mean_, self.scale_ = sets.mean[0].cpu(), sets.scale[0].cpu()
        self.coef_, self.intercept_ = fit.coefficients[0].cpu(), float(sets.target_mean[0])
        self.penalty_, self.l1_ratio_ = float(fit.penalty[0]), float(fit.l1_ratio[0])
        self.scores_, self.gap_ = fit.scores[0].cpu(), float(fit.gap[0])
        self.n_features_in_ = table.shape[1]
        warn_unconverged(type(self).__name__, fit)
        return self

    def predict(self, X: Any) -> Any:
        """Predict.

        Args:
            X: Features, of shape (N, p).

        Raises:
            ValueError: If the number of features is another than in ``fit``, or they hold NaN or inf.
        """
        table = self._as_in_fit("X", X)
        mean, scale, weight = (part.to(table.device) for part in (self.mean_, self.scale_, self.coef_))
        return like((table - mean) / scale @ weight + self.intercept_, X)

    def score(self, X: Any, y: Any) -> float:
        """Return the share of the target's variance that the predictions explain (R²).

        Args:
            X: Features, of shape (N, p).
            y: Targets, of shape (N,).
        """
        return r_squared(as_table("y", self.predict(X), (1,)), as_table("y", y, (1,)))


def r_squared(predictions: Tensor, target: Tensor) -> float:
    """Return the share of the variance that predictions explain, averaged over outputs.

    Args:
        predictions: Predictions, of shape (N,) or (N, outputs).
        target: Targets, of the same shape.
    """
    target = target.to(predictions.device)
    error = (predictions - target).square().sum(0)
    return float((1 - error / (target - target.mean(0)).square().sum(0)).mean())


def check_grid(name: str, grid: Any, most: float = math.inf) -> None:
    """Check a grid of penalties or ratios.

    Args:
        name: Argument name, for the message.
        grid: The values.
        most: Largest allowed value.

    Raises:
        ValueError: If it is no sequence of numbers in (0, most].
    """
    if isinstance(grid, str) or not isinstance(grid, Sequence) or not grid:
        raise ValueError(f"{name} is {grid!r}; allowed is a list of numbers > 0")
    for value in grid:
        check_number(name, value, low=0.0, low_allowed=False)
        if value > most:
            raise ValueError(f"{name} has {value}; allowed are numbers in (0, {most}]")


def warn_unconverged(name: str, fit: LinearFit) -> None:
    """Warn of models that neither coordinate descent nor active sets could solve.

    Args:
        name: What was fitted.
        fit: The models.
    """
    if fit.unconverged:
        worst = float(fit.gap.max())
        warnings.warn(
            f"{name}: {len(fit.unconverged)} of {len(fit.gap)} fits did not converge; the "
            f"largest duality gap is {worst:.2e} of the target's variance, above {fit.tolerance:.0e}. Drop more "
            "near-copies (a smaller tau_corr, a larger tau_mse)",
            LightningWeightsWarning,
            stacklevel=3,
        )
