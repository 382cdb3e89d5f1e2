"""The lasso with a cross-validated penalty, as an estimator."""

from collections.abc import Sequence

from lightning_weights.errors import check_number
from lightning_weights.functional.regularized_stacking import (
    L1_PENALTIES,
    CrossValidation,
    LinearFit,
    fit_elastic_nets,
)
from lightning_weights.modules._penalised_regressor import PenalisedRegressor, check_grid


class CVLasso(PenalisedRegressor):
    r"""The lasso on standardised features, its penalty chosen by cross-validation.

    $$\min_{w, b} \tfrac{1}{2N} \lVert y - b - X w \rVert^2 + \alpha \lVert w \rVert_1$$

    The penalty is chosen by solutions without a tolerance, on the folds' Gram matrices. The model comes from coordinate
    descent with the stopping rule of scikit-learn's ``LassoCV``; if that takes too many sweeps, it has no tolerance
    either. ``coef_`` belongs to standardised features.

    Args:
        penalties: Grid of α > 0.
        inner_folds: Number of folds of neighbouring rows.
        tolerance: Largest relative change of a weight, and duality gap over the target's variance, at the end.
        max_sweeps: Most sweeps over the coordinates before linear systems in the non-zero weights take over.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> import torch
        >>> x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        >>> CVLasso([0.1, 0.2]).fit(x, x[:, 0] + 1).coef_[1].item()
        0.0
    """

    def __init__(
        self,
        penalties: Sequence[float] = L1_PENALTIES,
        inner_folds: int = 3,
        tolerance: float = 1e-4,
        max_sweeps: int = 10_000,
    ) -> None:
        self.penalties = penalties
        self.inner_folds = inner_folds
        self.tolerance = tolerance
        self.max_sweeps = max_sweeps
        self._check()

    def _check(self) -> None:
        super()._check()
        check_grid("penalties", self.penalties)
        check_number("tolerance", self.tolerance, low=0.0, low_allowed=False)
        check_number("max_sweeps", self.max_sweeps, low=1, whole=True)

    def _fit_sets(self, sets: CrossValidation) -> LinearFit:
        return fit_elastic_nets(sets, [[1.0]], self.penalties, self.tolerance, self.max_sweeps)[0]
