"""Which rows are held out together, in the outer and in the inner cross-validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_weights.errors import check_number

LARGEST_SEED = 2**32  # of numpy's RandomState
UNUSED = -1


def fold_ids(num_rows: int, n_folds: int, seed: int, groups: Tensor | Sequence[object] | None = None) -> Tensor:
    """Return the fold of every row: shuffled, or with whole groups in one fold.

    Without groups, the folds are those of scikit-learn's ``KFold(n_folds, shuffle=True, random_state=seed)``. With
    groups, the largest come first, each into the fold that has the fewest rows so far, as in ``GroupKFold``; the seed
    plays no part in it.

    Args:
        num_rows: Number of rows.
        n_folds: Number of folds, from 2 to the number of rows.
        seed: Seed of the shuffle.
        groups: Group of every row.

    Returns:
        Folds as int64, of shape (num_rows,).

    Raises:
        ValueError: If there are fewer rows or groups than folds, or not one group for every row.

    Examples:
        >>> fold_ids(6, n_folds=3, seed=0).tolist()
        [2, 1, 0, 1, 2, 0]
        >>> fold_ids(6, n_folds=2, seed=0, groups=[7, 7, 7, 8, 8, 9]).tolist()
        [0, 0, 0, 1, 1, 1]
    """
    check_number("n_folds", n_folds, low=2, whole=True)
    check_number("seed", seed, low=0, high=LARGEST_SEED, whole=True)
    if num_rows < n_folds:
        raise ValueError(f"n_folds is {n_folds} with {num_rows} rows; allowed is at most one fold per row")
    if groups is not None:
        return _group_folds(_codes(groups, num_rows), n_folds)
    order = np.random.RandomState(seed).permutation(num_rows)
    folds = torch.empty(num_rows, dtype=torch.int64)
    folds[torch.from_numpy(order)] = contiguous_folds(num_rows, n_folds)
    return folds


def contiguous_folds(num_rows: int, n_folds: int) -> Tensor:
    """Return the fold of every row for folds of neighbouring rows; the first ones are longer if they can't be equal.

    Args:
        num_rows: Number of rows.
        n_folds: Number of folds, at most the number of rows.

    Raises:
        ValueError: If there are fewer rows than folds.

    Examples:
        >>> contiguous_folds(5, n_folds=2).tolist()
        [0, 0, 0, 1, 1]
    """
    if num_rows < n_folds:
        raise ValueError(f"{n_folds} inner folds were asked for with {num_rows} training rows; use fewer inner_folds")
    sizes = torch.full((n_folds,), num_rows // n_folds)
    sizes[: num_rows % n_folds] += 1
    return torch.arange(n_folds).repeat_interleave(sizes)


def inner_folds(
    train: Sequence[Tensor], num_rows: int, n_folds: int, groups: Tensor | Sequence[object] | None = None
) -> Tensor:
    """Return the inner fold of every row in every training set.

    Args:
        train: Row numbers of every training set, ascending.
        num_rows: Number of all rows.
        n_folds: Number of inner folds: of neighbouring rows, or of whole groups.
        groups: Group of every row.

    Returns:
        Inner folds as int64, of shape (num_rows, sets); -1 for rows that are not in the set.

    Raises:
        ValueError: If a training set has fewer rows or groups than inner folds.

    Examples:
        >>> inner_folds([torch.tensor([0, 1, 3]), torch.arange(4)], num_rows=4, n_folds=2).T.tolist()
        [[0, 0, -1, 1], [0, 0, 1, 1]]
    """
    codes = None if groups is None else _codes(groups, num_rows)
    folds = torch.full((num_rows, len(train)), UNUSED)
    for index, rows in enumerate(train):
        if codes is None:
            folds[rows, index] = contiguous_folds(len(rows), n_folds)
        else:
            folds[rows, index] = _group_folds(_codes(codes[rows], len(rows)), n_folds)
    return folds


def _codes(groups: Tensor | Sequence[object], num_rows: int) -> Tensor:
    """Number the groups."""
    names = groups.cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    if names.shape != (num_rows,):
        raise ValueError(f"groups has shape {names.shape} with {num_rows} rows; allowed is one group for every row")
    return torch.from_numpy(np.unique(names, return_inverse=True)[1].reshape(-1).astype(np.int64))


def _group_folds(codes: Tensor, n_folds: int) -> Tensor:
    """Put every group, the largest first, into the fold with the fewest rows."""
    sizes = np.bincount(codes.numpy())
    if len(sizes) < n_folds:
        raise ValueError(f"groups has {len(sizes)} different values with {n_folds} folds; allowed is one per fold")
    filled, fold_of_group = np.zeros(n_folds, dtype=np.int64), np.empty(len(sizes), dtype=np.int64)
    for group in np.argsort(sizes, kind="stable")[::-1]:
        fold = int(filled.argmin())
        filled[fold] += sizes[group]
        fold_of_group[group] = fold
    return torch.from_numpy(fold_of_group)[codes]
