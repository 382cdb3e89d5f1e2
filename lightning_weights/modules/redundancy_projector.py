"""Drops predictors that are near-copies of better ones, or nearly constant."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.regularized_stacking import Selection, select_columns
from lightning_weights.modules._estimator import Estimator, as_pair, column_names, like


class RedundancyProjector(Estimator):
    """Select columns of out-of-fold predictions: first part of regularized stacking, as a scikit-learn transformer.

    A column is dropped if it correlates with a better one by ``tau_corr`` and differs from it by ``tau_mse`` at most,
    or varies by less than ``tau_var``. After ``fit``, ``selection_`` has the selected columns, their errors, condition
    numbers and, for every removed column, the reason.

    Args:
        tau_corr: Least correlation of near-copies, in [0, 1].
        tau_mse: Largest mean squared difference of near-copies.
        tau_mse_mode: Whether ``tau_mse`` and ``tau_var`` are in squared units of the target, or, ``relative``, shares
            of its variance.
        tau_var: Least variance of a column.

    Raises:
        ValueError: If a threshold is out of range.

    Source: Mohammad and Meherab 2026, arXiv:2602.12469.

    Examples:
        >>> import torch
        >>> y = torch.arange(4.0)
        >>> RedundancyProjector().fit_transform(torch.stack([y + 0.1, y, -y], 1), y).shape
        torch.Size([4, 2])
    """

    estimator_type = "transformer"

    def __init__(
        self,
        tau_corr: float = 0.95,
        tau_mse: float = 0.01,
        tau_mse_mode: Literal["absolute", "relative"] = "absolute",
        tau_var: float = 0.01,
    ) -> None:
        self.tau_corr = tau_corr
        self.tau_mse = tau_mse
        self.tau_mse_mode = tau_mse_mode
        self.tau_var = tau_var
        check_thresholds(self)

    def fit(self, P: Any, y: Any) -> "RedundancyProjector":
        """Select columns.

        Args:
            P: Out-of-fold predictions, of shape (N, K).
            y: Targets, of shape (N,).
        """
        check_thresholds(self)
        table, target = as_pair("P", P, y)
        names = column_names(P, None)
        self.selection_: Selection = select_columns(
            table, target, self.tau_corr, self.tau_mse, self.tau_mse_mode, self.tau_var
        )
        self.n_features_in_ = table.shape[1]
        if names is not None:
            self.feature_names_in_ = np.asarray(names, dtype=object)
        return self

    def transform(self, P: Any) -> Any:
        """Return the selected columns.

        Args:
            P: Predictions, of shape (N, K).
        """
        table = self._as_in_fit("P", P)
        return like(table[:, self.selection_.columns], P)

    def fit_transform(self, P: Any, y: Any) -> Any:
        """Select columns and return them.

        Args:
            P: Out-of-fold predictions, of shape (N, K).
            y: Targets, of shape (N,).
        """
        return self.fit(P, y).transform(P)

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> Any:
        """Return the names of the selected columns.

        Args:
            input_features: Names of all columns. ``None``: those of the data frame in ``fit``, or x0, x1, ...
        """
        self._check_fitted()
        known = getattr(self, "feature_names_in_", [f"x{column}" for column in range(self.n_features_in_)])
        names = known if input_features is None else input_features
        return np.asarray([names[column] for column in self.selection_.columns.tolist()], dtype=object)


def check_thresholds(settings: Any) -> None:
    """Check the thresholds of a selection.

    Args:
        settings: What has them as attributes.

    Raises:
        ValueError: If one is out of range.
    """
    if isinstance(settings.tau_corr, bool) or not isinstance(settings.tau_corr, (int, float)):
        raise ValueError(f"tau_corr is {settings.tau_corr!r}; allowed is a number in [0, 1]")
    if not 0.0 <= settings.tau_corr <= 1.0:
        raise ValueError(
            f"tau_corr is {settings.tau_corr}; allowed is a correlation in [0, 1]. Exact copies alone are dropped by "
            "tau_corr=1.0 with tau_mse=0.0"
        )
    check_number("tau_mse", settings.tau_mse, low=0.0)
    check_choice("tau_mse_mode", settings.tau_mse_mode, ("absolute", "relative"))
    check_number("tau_var", settings.tau_var, low=0.0)
