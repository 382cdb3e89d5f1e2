"""Ridge regression with a cross-validated penalty, as an estimator."""

from collections.abc import Sequence

from lightning_weights.functional.regularized_stacking import RIDGE_PENALTIES, CrossValidation, LinearFit, fit_ridge
from lightning_weights.modules._penalised_regressor import PenalisedRegressor, check_grid


class CVRidge(PenalisedRegressor):
    r"""Ridge regression on standardised features, its penalty chosen by cross-validation.

    $$\min_{w, b} \lVert y - b - X w \rVert^2 + \lambda \lVert w \rVert^2$$

    All penalties of a fold come from one eigendecomposition of its Gram matrix. It chooses what scikit-learn's
    ``RidgeCV(alphas, cv=inner_folds, scoring="neg_root_mean_squared_error")`` chooses behind a ``StandardScaler``.
    ``coef_`` belongs to standardised features.

    Args:
        penalties: Grid of λ > 0.
        inner_folds: Number of folds of neighbouring rows.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> import torch
        >>> x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        >>> model = CVRidge([0.01, 100.0]).fit(x, x[:, 0] + 1)
        >>> model.penalty_, round(model.predict(torch.tensor([[1.0, 0.0]])).item(), 2)
        (0.01, 2.0)
    """

    def __init__(self, penalties: Sequence[float] = RIDGE_PENALTIES, inner_folds: int = 3) -> None:
        self.penalties = penalties
        self.inner_folds = inner_folds
        self._check()

    def _check(self) -> None:
        super()._check()
        check_grid("penalties", self.penalties)

    def _fit_sets(self, sets: CrossValidation) -> LinearFit:
        return fit_ridge(sets, self.penalties)
