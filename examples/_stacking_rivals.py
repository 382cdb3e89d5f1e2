"""Other ways to combine columns of predictions: their mean, the best one, least squares, and selections of few."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_weights.functional.regularized_stacking import greedy_selection, nnls_stack

ROUNDS = 100

Combined = tuple[Tensor, Tensor]  # weight of every column, and a constant


def mean(columns: Tensor, y: Tensor) -> Combined:
    """Weigh all columns alike."""
    return torch.full_like(columns[0], 1 / columns.shape[1]), y.new_zeros(())


def best_single(columns: Tensor, y: Tensor) -> Combined:
    """Take the column with the smallest error."""
    best = (columns - y[:, None]).square().mean(0).argmin()
    return torch.nn.functional.one_hot(best, columns.shape[1]).to(y), y.new_zeros(())


def least_squares(columns: Tensor, y: Tensor) -> Combined:
    """Fit all weights and a constant without a penalty; of many solutions the smallest."""
    centre, level = columns.mean(0), y.mean()
    weight = torch.linalg.lstsq(columns - centre, (y - level)[:, None], driver="gelsd").solution[:, 0]
    return weight, level - centre @ weight


def non_negative(columns: Tensor, y: Tensor) -> Combined:
    """Fit weights that are not negative, without a constant."""
    return nnls_stack(columns, y), y.new_zeros(())


def greedy(columns: Tensor, y: Tensor) -> Combined:
    """Add one column after another, each as often as it helps most, and keep the best beginning."""
    return greedy_selection(columns, y, ROUNDS), y.new_zeros(())


RIVALS: dict[str, Callable[[Tensor, Tensor], Combined]] = {
    "mean of all": mean,
    "best single": best_single,
    "least squares": least_squares,
    "NNLS": non_negative,
    "greedy selection": greedy,
}
