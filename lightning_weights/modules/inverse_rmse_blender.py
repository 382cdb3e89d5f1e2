"""Weighs regressors by the inverse of their errors, as an estimator."""

from typing import Any

from lightning_weights.functional.regularized_stacking import inverse_rmse_weights
from lightning_weights.modules._estimator import Estimator, as_pair, like


class InverseRMSEBlender(Estimator):
    r"""Average predictions with weights inversely proportional to their errors: last part of regularized stacking.

    $$\omega_m = \frac{1 / R_m}{\sum_n 1 / R_n}, \qquad R_m = \sqrt{\tfrac1N \lVert P_m - y \rVert^2}$$

    Source: Mohammad and Meherab 2026, arXiv:2602.12469.

    Examples:
        >>> blender = InverseRMSEBlender().fit([[1.0, 3.0], [-1.0, -3.0]], [0.0, 0.0])
        >>> blender.weights_.tolist(), blender.predict([[1.0, 5.0]]).tolist()
        ([0.75, 0.25], [2.0])
    """

    estimator_type = "regressor"

    def fit(self, P: Any, y: Any) -> "InverseRMSEBlender":
        """Measure the errors.

        Args:
            P: Out-of-fold predictions, one column per regressor, of shape (N, M).
            y: Targets, of shape (N,).

        Raises:
            ValueError: If rows do not match, hold NaN or inf, or a column has no error at all.
        """
        table, target = as_pair("P", P, y)
        self.rmse_ = (table - target[:, None]).square().mean(0).sqrt().cpu()
        self.weights_ = inverse_rmse_weights(self.rmse_)
        self.n_features_in_ = table.shape[1]
        return self

    def predict(self, P: Any) -> Any:
        """Average.

        Args:
            P: Predictions, of shape (N, M).

        Raises:
            ValueError: If the number of columns is another than in ``fit``.
        """
        table = self._as_in_fit("P", P)
        return like(table @ self.weights_.to(table.device), P)
