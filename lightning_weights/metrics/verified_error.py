"""Share of samples whose class is not proved."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class VerifiedError(Metric):
    r"""Share of samples for which some lower bound of a margin is negative: no proof that the class is right.

    $$\text{error} = \frac{1}{N} \sum_n \mathbb{1}\left[\min_{j \neq y_n} \underline{m}_{nj} < 0\right]$$

    It bounds the error under any attack within the radius that the margins were bounded for, up to the rounding of
    float32: bounds are not rounded outward. Margins of points (radius 0) give the ordinary error. A bound that is NaN
    proves nothing and counts as an error. Counts are summed over batches and processes.

    Args:
        **kwargs: Options of every torchmetrics ``Metric``, such as ``sync_on_compute``.

    Source: Gowal et al., 2018, arXiv:1810.12715 (the bound); Shi et al., 2021, arXiv:2103.17268 (the measure).

    Examples:
        >>> import torch
        >>> error = VerifiedError()
        >>> error.update(torch.tensor([[0.1, 2.0], [0.5, -0.1], [0.0, 0.3]]))
        >>> error.compute()
        tensor(0.3333)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    failed: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("failed", "total"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, margin_lb: Tensor) -> None:
        """Count the samples of one batch.

        Args:
            margin_lb: Lower bounds of the margins of the true class over the others, shape (N, K-1).

        Raises:
            ValueError: If the shape is another or the bounds are in half precision.
        """
        if margin_lb.ndim != 2 or margin_lb.shape[1] == 0:
            raise ValueError(
                f"margin_lb has shape {tuple(margin_lb.shape)}; allowed is (N, K-1): one margin per sample and wrong "
                f"class, so at least 2 classes"
            )
        if margin_lb.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"margin_lb is in {margin_lb.dtype}, whose rounding can turn a failure into a certificate; compute "
                f"the bounds in float32 or float64, outside autocast"
            )
        # negated, since NaN compares false with everything
        self.failed = self.failed + (~(margin_lb >= 0).all(dim=1)).sum()
        self.total = self.total + margin_lb.shape[0]

    def compute(self) -> Tensor:
        """Return the share from 0 to 1, float32, NaN if nothing was counted."""
        return self.failed.to(torch.float32) / self.total.to(torch.float32)
