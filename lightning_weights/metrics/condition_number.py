"""Condition numbers of a network's weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_weights.functional.tscnc import condition_numbers, geometric_mean_condition

MEAN = "geometric_mean"


class ConditionNumber(Metric):
    r"""Report the condition number of every weight matrix of a network, and their geometric mean.

    $$\kappa(W) = \sigma_{\max}(W) / \sigma_{\min}(W)$$

    Convolutions count as matrices of shape (out, in·kernel), parametrized weights as they are in evaluation: masked,
    and with gates without noise. The last network given counts.

    Args:
        **kwargs: Options of every torchmetrics ``Metric``, such as ``sync_on_compute``.

    Source: Feng et al. 2025, arXiv:2503.20454.

    Examples:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> with torch.no_grad():
        ...     _ = network[0].weight.copy_(torch.diag(torch.tensor([1.0, 2.0])))
        ...     _ = network[2].weight.copy_(torch.diag(torch.tensor([8.0, 1.0])))
        >>> metric = ConditionNumber()
        >>> metric.update(network)
        >>> metric.compute()
        {'0': tensor(2.), '2': tensor(8.), 'geometric_mean': tensor(4.)}
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    values: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names: list[str] = []
        # all processes hold the same weights, so that their mean is any one of them
        self.add_state("values", torch.zeros(0, dtype=torch.float64), dist_reduce_fx="mean")

    def update(self, network: nn.Module) -> None:
        """Measure a network.

        Args:
            network: Its layers with a ``weight`` of two dimensions or more count.

        Raises:
            ValueError: If there are none.
        """
        numbers = condition_numbers(network)
        if not numbers:
            raise ValueError("network has no layer with a weight of two dimensions or more, so nothing can be measured")
        self.names = list(numbers)
        self.values = torch.tensor([*numbers.values()], dtype=torch.float64, device=self.values.device)

    def compute(self) -> dict[str, Tensor]:
        """Return condition numbers by layer name and their geometric mean, float32; nothing before an update."""
        if len(self.values) == 0:
            return {}
        numbers = dict(zip(self.names, self.values.tolist(), strict=True))
        mean = geometric_mean_condition(numbers)
        return {name: torch.tensor(number) for name, number in {**numbers, MEAN: mean}.items()}
