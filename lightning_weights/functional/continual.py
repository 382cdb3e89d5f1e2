"""Summaries of an accuracy matrix R, where R[i, j] is the accuracy on task j after training on task i."""

from __future__ import annotations

import torch
from torch import Tensor


def _evaluated(matrix: Tensor, after: int | None) -> tuple[Tensor, int]:
    """Return the rows 0..after of the columns 0..after, and ``after`` itself, once both are known to be usable."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ValueError(
            f"`matrix` has shape {tuple(matrix.shape)}: expected (tasks, tasks) with at least one task,"
            " one row per task trained on and one column per task evaluated."
        )
    if not matrix.is_floating_point():
        raise ValueError(
            f"`matrix` has dtype {matrix.dtype}: expected floating-point accuracies, convert with .float()."
        )
    if after is None:
        rows = (~matrix.isnan()).any(dim=1).nonzero()
        if len(rows) == 0:
            raise ValueError("`matrix` holds only NaN: evaluate at least one task first.")
        after = int(rows[-1])
    if not 0 <= after < matrix.shape[0]:
        raise ValueError(f"`after` is {after}: expected a task from 0 to {matrix.shape[0] - 1}.")
    block = matrix[: after + 1, : after + 1]
    missing = block[after].isnan().nonzero().flatten().tolist()
    if missing:
        raise ValueError(
            f"`matrix` has no accuracy on the tasks {missing} after training on task {after}:"
            f" evaluate the tasks 0 to {after} there, or choose another `after`."
        )
    return block, after


def average_accuracy(matrix: Tensor, after: int | None = None) -> Tensor:
    r"""Average the accuracy on all tasks seen so far.

    $$\mathrm{ACC}_k = \frac{1}{k+1} \sum_{j=0}^{k} R_{k,j}$$

    Args:
        matrix: Accuracies R of shape (tasks, tasks), floating-point, NaN where not evaluated.
        after: Task k after whose training to look, from 0. ``None``: the last row with an accuracy in it.

    Returns:
        The average, a 0-d tensor in the unit of ``matrix``.

    Raises:
        ValueError: If ``matrix`` isn't square and floating-point, or lacks an accuracy that the average needs.

    Source: Lopez-Paz & Ranzato 2017, arXiv:1706.08840, with tasks counted from 0.

    Examples:
        >>> average_accuracy(torch.tensor([[0.9, 0.1], [0.5, 0.8]])).item()
        0.6499999761581421
    """
    block, after = _evaluated(matrix, after)
    return block[after].mean()


def forgetting(matrix: Tensor, after: int | None = None) -> Tensor:
    r"""Average how far the accuracy on each earlier task has fallen from its best.

    $$F_k = \frac{1}{k} \sum_{j=0}^{k-1} \Bigl(\max_{l<k} R_{l,j} - R_{k,j}\Bigr)$$

    Args:
        matrix: Accuracies R of shape (tasks, tasks), floating-point, NaN where not evaluated (left out of the maximum).
        after: Task k after whose training to look, from 0. ``None``: the last row with an accuracy in it.

    Returns:
        The forgetting, a 0-d tensor in the unit of ``matrix``; 0 after the first task, negative if accuracies rose.

    Raises:
        ValueError: If ``matrix`` isn't square and floating-point, or lacks an accuracy that the average needs.

    Source: Chaudhry et al. 2018, arXiv:1801.10112, with tasks counted from 0.

    Examples:
        >>> forgetting(torch.tensor([[0.75, 0.1], [0.5, 0.8]])).item()
        0.25
    """
    block, after = _evaluated(matrix, after)
    if after == 0:
        return block.new_zeros(())
    earlier = block[:after, :after]
    never = earlier.isnan().all(dim=0).nonzero().flatten().tolist()
    if never:
        raise ValueError(
            f"`matrix` has no accuracy on the tasks {never} before training on task {after}:"
            " forgetting needs one evaluation of each earlier task."
        )
    best = earlier.masked_fill(earlier.isnan(), -torch.inf).amax(dim=0)
    return (best - block[after, :after]).mean()


def backward_transfer(matrix: Tensor, after: int | None = None) -> Tensor:
    r"""Average how much training on later tasks has changed the accuracy on each earlier one.

    $$\mathrm{BWT}_k = \frac{1}{k} \sum_{j=0}^{k-1} (R_{k,j} - R_{j,j})$$

    Args:
        matrix: Accuracies R of shape (tasks, tasks), floating-point, NaN where not evaluated.
        after: Task k after whose training to look, from 0. ``None``: the last row with an accuracy in it.

    Returns:
        The transfer, a 0-d tensor in the unit of ``matrix``; 0 after the first task, negative if tasks were forgotten.

    Raises:
        ValueError: If ``matrix`` isn't square and floating-point, or lacks an accuracy that the average needs.

    Source: Lopez-Paz & Ranzato 2017, arXiv:1706.08840, with tasks counted from 0.

    Examples:
        >>> backward_transfer(torch.tensor([[0.75, 0.1], [0.5, 0.8]])).item()
        -0.25
    """
    block, after = _evaluated(matrix, after)
    if after == 0:
        return block.new_zeros(())
    learned = block.diagonal()[:after]
    missing = learned.isnan().nonzero().flatten().tolist()
    if missing:
        raise ValueError(
            f"`matrix` has no accuracy on the tasks {missing} right after training on each:"
            " backward transfer needs the diagonal."
        )
    return (block[after, :after] - learned).mean()
