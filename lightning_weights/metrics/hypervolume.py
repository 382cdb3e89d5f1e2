"""The volume that the vectors of a training dominate."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_weights.functional.dynamic_reward import ParetoArchive, hypervolume


class Hypervolume(Metric):
    r"""Report the volume between a reference and the Pareto front of all vectors so far.

    $$HV(P; r) = \lambda\Bigl( \bigcup_{p \in P} \{\, x : r \preceq x \preceq p \,\} \Bigr)$$

    Vectors of all processes count together.

    Args:
        reference: r, one number per objective; vectors that are not better in all of them add nothing.
        maximize: Whether each objective is to be large. ``None``: all of them.
        scale: Unit of each objective, by which gains are divided. ``None``: 1 each.
        **kwargs: Options of every torchmetrics ``Metric``, such as ``sync_on_compute``.

    Raises:
        ValueError: If lengths differ, or a number is out of range.

    Examples:
        >>> metric = Hypervolume(reference=[0.0, 9.0], maximize=[True, False], scale=[1.0, 9.0])
        >>> metric.update(torch.tensor([[0.5, 4.5], [1.0, 6.75]]))
        >>> metric.compute()
        tensor(0.3750, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    points: list[Tensor]

    def __init__(
        self,
        reference: list[float],
        maximize: list[bool] | None = None,
        scale: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        checked = ParetoArchive(reference, maximize, scale)
        super().__init__(**kwargs)
        self.reference, self.maximize, self.scale = checked.reference, checked.maximize, checked.scale
        self.add_state("points", [], dist_reduce_fx="cat")

    def update(self, points: Tensor | Sequence[float]) -> None:
        """Take vectors.

        Args:
            points: One vector, (K,), or several, (n, K).

        Raises:
            ValueError: If they have another number of objectives.
        """
        rows = torch.as_tensor(points, dtype=torch.float64).detach()
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != len(self.reference):
            raise ValueError(f"points have shape {tuple(rows.shape)}; allowed is (n, {len(self.reference)})")
        self.points.append(rows)

    def compute(self) -> Tensor:
        """Return the volume, fp64; 0 before an update."""
        if not self.points:
            return torch.zeros((), dtype=torch.float64)
        rows = dim_zero_cat(self.points)
        units = rows.new_tensor(self.scale)
        reference = rows.new_tensor(self.reference) / units
        return rows.new_tensor(hypervolume(rows / units, reference, self.maximize))
