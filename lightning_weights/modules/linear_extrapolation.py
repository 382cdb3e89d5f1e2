"""A fixed linear rule in the place of the network that predicts weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.functional.weight_extrapolation import extrapolate


class LinearExtrapolation(nn.Module):
    r"""Predicts the next value of a weight as the sum $\sum_i c_i w_i$ over its history.

    It takes the place of a [`KNOWN`][lightning_weights.modules.KNOWN] in a
    [`KNOWNBank`][lightning_weights.modules.KNOWNBank], so that shrinking, averages, fitted curves and least squares
    leave the same tensors alone.

    Args:
        coefficients: One for each of the S ≥ 2 values of a history, that after training on all data last, as
            [`shrink_coefficients`][lightning_weights.functional.weight_extrapolation.shrink_coefficients] gives them.

    Raises:
        ValueError: If they are no such list.

    Examples:
        >>> import torch
        >>> line = LinearExtrapolation([0.0, -1.0, 2.0])
        >>> history = torch.tensor([[1.0, 2.0, 4.0]])
        >>> line(history), line.nowcast(history, recursions=2)
        (tensor([2.]), tensor([[6., 8.]]))
    """

    coefficients: Tensor

    def __init__(self, coefficients: Sequence[float] | Tensor) -> None:
        super().__init__()
        plain = coefficients.detach() if isinstance(coefficients, Tensor) else list(coefficients)
        values = torch.as_tensor(plain).to(torch.float64, copy=True)
        if values.dim() != 1 or len(values) < 2 or not values.isfinite().all():
            raise ValueError(f"coefficients is {coefficients}; allowed is a list of at least two finite numbers")
        self.register_buffer("coefficients", values)
        self.history = len(values)

    def forward(self, w: Tensor) -> Tensor:
        """Return the change of every weight.

        Args:
            w: Histories (N, S), the value after training on all data last.

        Returns:
            N changes.
        """
        return extrapolate(w, self.coefficients) - w[:, -1]

    @torch.no_grad()
    def nowcast(self, history: Tensor, recursions: int = 1) -> Tensor:
        """Predict the values that follow, each prediction being the last value of the next one's history.

        Args:
            history: Histories (N, S), the value after training on all data last.
            recursions: Number ≥ 1 of predictions.

        Returns:
            Predictions (N, recursions).

        Raises:
            ValueError: If an argument is out of range.
        """
        check_number("recursions", recursions, low=1, whole=True)
        if history.dim() != 2 or history.shape[1] != self.history:
            raise ValueError(
                f"the history is {tuple(history.shape)}; allowed is a history of {self.history} values a row"
            )
        values = history
        for _ in range(recursions):
            following = extrapolate(values[:, -self.history :], self.coefficients)
            values = torch.cat([values, following.unsqueeze(1)], dim=1)
        return values[:, history.shape[1] :]
