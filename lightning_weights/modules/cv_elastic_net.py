"""The elastic net with a cross-validated penalty and ratio, as an estimator."""

from collections.abc import Sequence

from lightning_weights.errors import check_number
from lightning_weights.functional.regularized_stacking import (
    L1_PENALTIES,
    L1_RATIOS,
    CrossValidation,
    LinearFit,
    fit_elastic_nets,
)
from lightning_weights.modules._penalised_regressor import PenalisedRegressor, check_grid


class CVElasticNet(PenalisedRegressor):
    r"""The elastic net on standardised features, penalty and ratio chosen by cross-validation.

    $$\min_{w, b} \tfrac{1}{2N} \lVert y - b - X w \rVert^2 + \alpha \rho \lVert w \rVert_1
    + \tfrac{\alpha (1 - \rho)}{2} \lVert w \rVert^2$$

    The penalty is chosen by solutions without a tolerance, on the folds' Gram matrices. The model comes from coordinate
    descent with the stopping rule of scikit-learn's ``ElasticNetCV``; if that takes too many sweeps, it has no
    tolerance either. ``coef_`` belongs to standardised features.

    Args:
        penalties: Grid of α > 0.
        l1_ratios: Grid of ρ in (0, 1]; 1 is the lasso.
        inner_folds: Number of folds of neighbouring rows.
        tolerance: Largest relative change of a weight, and duality gap over the target's variance, at the end.
        max_sweeps: Most sweeps over the coordinates before linear systems in the non-zero weights take over.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> import torch
        >>> x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        >>> model = CVElasticNet([0.1, 0.2], [0.5, 1.0]).fit(x, x[:, 0] + 1)
        >>> model.penalty_, model.l1_ratio_
        (0.1, 0.5)
    """

    def __init__(
        self,
        penalties: Sequence[float] = L1_PENALTIES,
        l1_ratios: Sequence[float] = L1_RATIOS,
        inner_folds: int = 3,
        tolerance: float = 1e-4,
        max_sweeps: int = 10_000,
    ) -> None:
        self.penalties = penalties
        self.l1_ratios = l1_ratios
        self.inner_folds = inner_folds
        self.tolerance = tolerance
        self.max_sweeps = max_sweeps
        self._check()

    def _check(self) -> None:
        super()._check()
        check_grid("penalties", self.penalties)
        check_grid("l1_ratios", self.l1_ratios, most=1.0)
        check_number("tolerance", self.tolerance, low=0.0, low_allowed=False)
        check_number("max_sweeps", self.max_sweeps, low=1, whole=True)

    def _fit_sets(self, sets: CrossValidation) -> LinearFit:
        return fit_elastic_nets(sets, [self.l1_ratios], self.penalties, self.tolerance, self.max_sweeps)[0]
