"""Statistics of an ensemble's predictions, as further features of every row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STATISTICS = ("mean", "std", "median", "range")
INTERACTIONS = ("mean * std", "range * std")


def meta_features(predictions: Tensor, statistics: bool = True, interactions: bool = True) -> Tensor:
    r"""Append statistics over the models to their predictions, and products of statistics.

    $$[\,p_1 \ldots p_k,\; \mu,\; \sigma,\; m,\; r,\; \mu\sigma,\; r\sigma\,]$$

    with mean μ, standard deviation σ (divided by k), median m (of an even number: the middle between the two middle
    values, where ``torch.median`` takes the lower one) and range r. The mean is a linear combination of the columns
    before it, so that least squares without a penalty has no unique solution on the result.

    Args:
        predictions: Predictions of shape (..., k).
        statistics: Whether to append μ, σ, m and r.
        interactions: Whether to append μσ and rσ.

    Returns:
        Features of shape (..., k + 4 + 2), or fewer without one of the groups.

    Source: Mohammad and Meherab 2026, arXiv:2602.12469.

    Examples:
        >>> meta_features(torch.tensor([[1.0, 2.0, 6.0, 3.0]])).squeeze(0)[4:8]
        tensor([3.0000, 1.8708, 2.5000, 5.0000])
    """
    if not (statistics or interactions):
        return predictions
    count = predictions.shape[-1]
    mean = predictions.mean(-1, keepdim=True)
    spread = (predictions - mean).square().mean(-1, keepdim=True).sqrt()
    ordered = predictions.sort(-1).values
    length = ordered[..., -1:] - ordered[..., :1]
    parts = [predictions]
    if statistics:
        lower, upper = (count - 1) // 2, count // 2
        median = (ordered[..., lower : lower + 1] + ordered[..., upper : upper + 1]) / 2
        parts += [mean, spread, median, length]
    if interactions:
        parts += [mean * spread, length * spread]
    return torch.cat(parts, -1)


def meta_feature_names(columns: Sequence[str], statistics: bool = True, interactions: bool = True) -> list[str]:
    """Return the names of the columns that `meta_features` returns.

    Args:
        columns: Names of the predictions' columns.
        statistics: Whether statistics are appended.
        interactions: Whether interactions are appended.

    Examples:
        >>> meta_feature_names(["ridge", "tree"], statistics=False)
        ['ridge', 'tree', 'mean * std', 'range * std']
    """
    return [*columns, *(STATISTICS if statistics else ()), *(INTERACTIONS if interactions else ())]
