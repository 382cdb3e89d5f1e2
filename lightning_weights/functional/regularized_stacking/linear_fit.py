"""What fitting penalised linear models to several training sets gives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LinearFit(NamedTuple):
    """Penalties that were chosen in each of S training sets, and the models fitted with them.

    Attributes:
        coefficients: Weights of the standardised features, of shape (S, p).
        penalty: Chosen penalties, of shape (S,).
        l1_ratio: Chosen shares of the ℓ1 norm, of shape (S,); NaN for ridge.
        scores: Mean error over the inner folds for every point of the grid, of shape (S, points).
        gap: Duality gaps of the fitted models over the target's mean square, of shape (S,); zero for ridge.
        tolerance: Gap up to which a model counts as converged.

    Examples:
        >>> import torch
        >>> one = torch.ones(1)
        >>> LinearFit(torch.zeros(1, 3), one, one, torch.zeros(1, 5), one, tolerance=1e-4).unconverged
        [0]
    """

    coefficients: Tensor
    penalty: Tensor
    l1_ratio: Tensor
    scores: Tensor
    gap: Tensor
    tolerance: float

    @property
    def unconverged(self) -> list[int]:
        """Numbers of the training sets whose model has a larger duality gap than allowed."""
        return [int(index) for index in (self.gap > self.tolerance).nonzero()]
