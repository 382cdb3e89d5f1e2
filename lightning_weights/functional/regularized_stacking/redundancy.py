"""Which of many predictors to keep: those that are not near-copies of a better one, and not constant."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_weights.errors import check_choice, check_number

DOUBT = 1e-12  # share of the variances up to which a Gram matrix in fp64 may err about a pair


class Removal(NamedTuple):
    """A column that was removed, and why.

    Attributes:
        column: Number of the column.
        reason: ``redundant``, or ``variance`` for a column that hardly varies.
        alternative: Number of the column that is kept instead; None for ``variance``.
        correlation: Pearson correlation with it; NaN for ``variance``.
        mse: Mean squared difference from it; NaN for ``variance``.
        risk_difference: By how much its root mean squared error is larger than the alternative's; NaN for
            ``variance``.
        variance: Population variance of the column.

    Examples:
        >>> Removal(3, "redundant", 1, correlation=0.99, mse=0.002, risk_difference=0.01, variance=4.0).alternative
        1
    """

    column: int
    reason: Literal["redundant", "variance"]
    alternative: int | None
    correlation: float
    mse: float
    risk_difference: float
    variance: float


class Selection(NamedTuple):
    """Columns that were kept, and what was found on the way.

    Attributes:
        columns: Numbers of the columns that are kept, ascending, int64 of shape (k,).
        risk: Root mean squared error of every column, of shape (K,).
        removed: Columns that were removed, in the order of their numbers.
        condition_before: Condition number of the correlation matrix of all columns; infinite if one is constant.
        condition_after: The same of the columns that are kept, which can't be larger.

    Examples:
        >>> target = torch.tensor([0.0, 1.0, 2.0, 3.0])
        >>> selection = select_columns(torch.stack([target + 0.1, target.sin(), target + 0.1], 1), target)
        >>> selection.columns.tolist(), selection.removed[0].alternative
        ([0, 1], 0)
    """

    columns: Tensor
    risk: Tensor
    removed: list[Removal]
    condition_before: float
    condition_after: float


def select_columns(
    predictions: Tensor,
    target: Tensor,
    tau_corr: float = 0.95,
    tau_mse: float = 0.01,
    tau_mse_mode: Literal["absolute", "relative"] = "absolute",
    tau_var: float = 0.01,
) -> Selection:
    r"""Keep the columns that are neither near-copies of a better one nor nearly constant.

    From the least root mean squared error on, column k is dropped if a kept column j has

    $$\operatorname{corr}(P_k, P_j) \ge \tau_\mathrm{corr} \quad\text{and}\quad
    \tfrac1N \lVert P_k - P_j \rVert^2 \le \tau_\mathrm{mse};$$

    afterwards, kept columns with a variance below τ_var are dropped. All pairs come from one centred Gram matrix in
    fp64; a pair that it can't decide, because a difference of large numbers is near a threshold, is computed directly.
    A constant column correlates with none.

    Args:
        predictions: Out-of-fold predictions, one column per predictor, of shape (N, K).
        target: Targets, of shape (N,).
        tau_corr: Least correlation of near-copies; above 1: none are dropped.
        tau_mse: Largest mean squared difference of near-copies.
        tau_mse_mode: Whether ``tau_mse`` and ``tau_var`` are in squared units of the target, or, ``relative``, shares
            of its variance, so that the units of the target don't matter.
        tau_var: Least variance of a column that is kept.

    Returns:
        Kept and removed columns.

    Raises:
        ValueError: If a threshold is out of range, or all columns vary too little.

    Source: Mohammad and Meherab 2026, arXiv:2602.12469. The reference compares pairs one by one.

    Examples:
        >>> target = torch.arange(4.0)
        >>> select_columns(torch.stack([target, target + 0.01, -target], 1), target).columns.tolist()
        [0, 2]
    """
    check_number("tau_corr", tau_corr, low=0.0)
    check_number("tau_mse", tau_mse, low=0.0)
    check_number("tau_var", tau_var, low=0.0)
    check_choice("tau_mse_mode", tau_mse_mode, ("absolute", "relative"))
    pairs = _Pairs(predictions.double())
    target = target.double()
    unit = float(target.var(correction=0)) if tau_mse_mode == "relative" else 1.0
    risk = (pairs.rows - target).square().mean(1).sqrt()
    kept, removed = _without_copies(pairs, risk, tau_corr, tau_mse * unit)
    flat = {column for column in kept if float(pairs.variance[column]) < tau_var * unit}
    if len(flat) == len(kept):
        raise ValueError(
            f"tau_var is {tau_var} ({tau_mse_mode}), and no column varies more than "
            f"{float(pairs.variance.max()):.3g}: nothing would be left. Use a smaller tau_var, or "
            "tau_mse_mode='relative', where thresholds are shares of the target's variance"
        )
    nan = math.nan
    removed += [Removal(k, "variance", None, nan, nan, nan, float(pairs.variance[k])) for k in flat]
    columns = torch.tensor(sorted(set(kept) - flat), device=predictions.device)
    correlation = pairs.correlation
    before, after = condition_number(correlation), condition_number(correlation[columns][:, columns])
    return Selection(columns, risk, sorted(removed), before, after)


def condition_number(correlation: Tensor) -> float:
    """Return the condition number of a correlation matrix in the 2-norm.

    Args:
        correlation: Correlations, of shape (K, K); NaN for constant columns.

    Returns:
        The ratio of the largest and the smallest singular value; infinite if a column is constant.

    Examples:
        >>> condition_number(torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
        3.0
    """
    if not bool(correlation.isfinite().all()):
        return math.inf
    values = torch.linalg.svdvals(correlation)
    return float(values[0] / values[-1]) if float(values[-1]) > 0 else math.inf


class _Pairs:
    """Correlations and mean squared differences of all pairs of columns."""

    def __init__(self, predictions: Tensor) -> None:
        self.rows = predictions.T.contiguous()  # columns as rows: sums over equal ones are equal in every bit
        count = len(predictions)
        shifted = self.rows - self.rows[:, :1]  # exact zeros in constant columns, and small numbers in the others
        self.centred = shifted - shifted.mean(1, keepdim=True)
        gram = self.centred @ self.centred.T
        power = gram.diagonal()
        self.variance = power / count
        sizes = power.sqrt()
        self.correlation = (gram / sizes[:, None] / sizes).clamp(-1, 1).fill_diagonal_(1.0)
        self.correlation[power == 0] = math.nan
        self.correlation[:, power == 0] = math.nan
        means = self.rows[:, 0] + shifted.mean(1)
        self.mse = (power[:, None] + power - 2 * gram).clamp(min=0) / count + (means[:, None] - means).square()

    def near_copies(self, tau_corr: float, tau_mse: float) -> tuple[Tensor, Tensor]:
        """Return which pairs may be near-copies, and in which of them a threshold is too near to be sure."""
        doubt = DOUBT * (self.variance[:, None] + self.variance + self.mse)
        copies = (self.correlation >= tau_corr - DOUBT) & (self.mse <= tau_mse + doubt)
        sure = (self.correlation >= tau_corr + DOUBT) & (self.mse <= tau_mse - doubt)
        return copies, copies & ~sure

    def direct(self, one: int, other: int) -> tuple[float, float]:
        """Return correlation and mean squared difference of two columns, from the columns themselves."""
        a, b = self.centred[one], self.centred[other]
        correlation = float((a @ b) / ((a @ a) * (b @ b)).sqrt())
        difference = self.rows[one] - self.rows[other]
        return min(max(correlation, -1.0), 1.0), float(difference.square().mean())


def _without_copies(pairs: _Pairs, risk: Tensor, tau_corr: float, tau_mse: float) -> tuple[list[int], list[Removal]]:
    """Go through the columns from the best on."""
    copies, doubtful = (table.tolist() for table in pairs.near_copies(tau_corr, tau_mse))
    kept: list[int] = []
    removed: list[Removal] = []
    for column in risk.argsort(stable=True).tolist():
        for other in kept:
            if not copies[column][other]:
                continue
            correlation, mse = pairs.direct(column, other)
            if doubtful[column][other] and not (correlation >= tau_corr and mse <= tau_mse):
                continue
            worse, variance = float(risk[column] - risk[other]), float(pairs.variance[column])
            removed.append(Removal(column, "redundant", other, correlation, mse, worse, variance))
            break
        else:
            kept.append(column)
    return kept, removed
