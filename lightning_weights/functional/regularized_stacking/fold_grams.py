"""Everything that linear models need to know of many overlapping sets of rows, from one pass over the rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CELLS_AT_ONCE = 256  # Gram matrices of groups of rows that are held before they are added up
ROUNDING = 16 * torch.finfo(torch.float64).eps  # standard deviation, over the mean, of a constant's rounding errors
FLAT = 1e-13  # share of a column's variance over all rows, below which it counts as constant in a part of them


class Problem(NamedTuple):
    """Sums over the rows of one set, or of a batch of sets, that least squares with a penalty is solved from.

    Attributes:
        gram: Sums of products of centred, scaled features, of shape (..., p, p).
        moments: Sums of their products with the centred target, of shape (..., p).
        power: Sum of the squares of the centred target, of shape (...).
        rows: Number of rows, of shape (...).

    Examples:
        >>> Problem(torch.eye(2), torch.ones(2), torch.tensor(3.0), torch.tensor(5.0)).gram.shape
        torch.Size([2, 2])
    """

    gram: Tensor
    moments: Tensor
    power: Tensor
    rows: Tensor


class CrossValidation(NamedTuple):
    """Problems of all training sets, and of the inner folds that choose their penalties.

    Attributes:
        whole: All rows of each of S training sets.
        inner: The rows of a set without an inner fold, for each of its I inner folds; batch shape (S, I).
        held: The rows of the inner folds, in the coordinates of ``inner``; batch shape (S, I).
        mean: Means of the features in each set, of shape (S, p).
        scale: Standard deviations of the features in each set, 1 where they are constant, of shape (S, p).
        target_mean: Means of the target in each set, of shape (S,).

    Examples:
        >>> x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> sets = fold_grams(x, x.sum(1), torch.arange(12)[:, None] % 3)
        >>> sets.whole.gram.shape, sets.inner.gram.shape, sets.inner.rows.tolist()
        (torch.Size([1, 2, 2]), torch.Size([1, 3, 2, 2]), [[8.0, 8.0, 8.0]])
    """

    whole: Problem
    inner: Problem
    held: Problem
    mean: Tensor
    scale: Tensor
    target_mean: Tensor


def fold_grams(features: Tensor, target: Tensor, folds: Tensor) -> CrossValidation:
    r"""Accumulate the Gram matrices of all folds once, and make every training set's problems from them.

    Rows that belong to the same inner fold in every training set form a cell. Each row enters the Gram matrix of
    (1, x, y) of its cell only; a set without a fold is the set's sum less the fold's. Centring and standardisation
    happen in the matrices:

    $$\sum (x - \bar x)(x - \bar x)^\top = \sum x x^\top - n\, \bar x \bar x^\top,$$

    after the columns were brought to mean 0 and variance 1 over all rows, so that little cancels.

    Args:
        features: Features in fp64, of shape (N, p).
        target: Targets in fp64, of shape (N,).
        folds: Inner fold of every row in every training set, -1 where it is not in the set, int64 of shape (N, S).

    Returns:
        The problems. Features are standardised by mean and standard deviation of the whole set, also inside of it.

    Examples:
        >>> x = torch.tensor([[0.0], [2.0], [4.0], [6.0]], dtype=torch.float64)
        >>> sets = fold_grams(x, x[:, 0] + 1, torch.tensor([[0], [0], [1], [1]]))
        >>> sets.mean.item(), round(sets.scale.item(), 3), round(sets.whole.gram.item(), 9)
        (3.0, 2.236, 4.0)
    """
    offset = features.mean(0)
    centred = features - offset
    size = centred.square().mean(0).sqrt()
    constant = size <= ROUNDING * offset.abs()
    centred, size = torch.where(constant, 0.0, centred), torch.where(constant, 1.0, size)
    target_offset = target.mean()
    table = torch.cat([torch.ones_like(centred[:, :1]), centred / size, (target - target_offset)[:, None]], 1)
    held = _sums(table, folds)
    whole = held.sum(1)
    mean = whole[:, 0, 1:] / whole[:, :1, 0]
    variance = (whole.diagonal(dim1=-2, dim2=-1)[:, 1:-1] / whole[:, :1, 0] - mean[:, :-1].square()).clamp(min=0)
    flat = variance <= FLAT
    scale = torch.where(flat, torch.inf, variance.sqrt())  # entries of constant columns become zero
    train = whole[:, None] - held
    inner_mean = train[..., 0, 1:] / train[..., :1, 0]
    return CrossValidation(
        whole=_centred(whole, mean, scale),
        inner=_centred(train, inner_mean, scale[:, None]),
        held=_centred(held, inner_mean, scale[:, None]),
        mean=offset + size * mean[:, :-1],
        scale=torch.where(flat, 1.0, scale * size),
        target_mean=target_offset + mean[:, -1],
    )


def held_out_mse(held: Problem, weights: Tensor) -> Tensor:
    """Return mean squared errors on held-out rows, from their Gram matrices alone.

    Args:
        held: Held-out rows in the coordinates that the weights belong to.
        weights: Weights of L models, of shape (..., L, p).

    Returns:
        Mean squared errors, of shape (..., L).

    Examples:
        >>> held = Problem(*(torch.tensor(v) for v in ([[4.0]], [2.0], 3.0, 2.0)))
        >>> held_out_mse(held, torch.tensor([[0.0], [0.5]]))
        tensor([1.5000, 1.0000])
    """
    quadratic = ((weights @ held.gram) * weights).sum(-1)
    linear = (weights @ held.moments.unsqueeze(-1)).squeeze(-1)
    return (held.power.unsqueeze(-1) - 2 * linear + quadratic).clamp(min=0) / held.rows.unsqueeze(-1)


def _sums(table: Tensor, folds: Tensor) -> Tensor:
    """Return the Gram matrix of the rows of every inner fold of every set, of shape (S, I, q, q)."""
    sets, inner = folds.shape[1], int(folds.max()) + 1
    cells = torch.zeros(len(folds), dtype=torch.int64, device=folds.device)
    for column in folds.T:
        cells = torch.unique(cells * (inner + 1) + column + 1, return_inverse=True)[1]
    order = cells.argsort(stable=True)
    sizes = cells.bincount().tolist()
    first = torch.tensor([0, *sizes[:-1]], device=folds.device).cumsum(0)
    fold_of_cell = folds[order[first]]
    member = torch.stack([fold_of_cell == index for index in range(inner)], -1).to(table.dtype)  # (cells, S, I)
    parts = table[order].split(sizes)
    total = table.new_zeros(sets * inner, table.shape[1] ** 2)
    for start in range(0, len(parts), CELLS_AT_ONCE):
        some = slice(start, start + CELLS_AT_ONCE)
        grams = torch.stack([part.T @ part for part in parts[some]])
        total += member[some].flatten(1).T @ grams.flatten(1)
    return total.view(sets, inner, table.shape[1], table.shape[1])


def _centred(grams: Tensor, mean: Tensor, scale: Tensor) -> Problem:
    """Return what Gram matrices of (1, x, y) say about (x - mean) / scale and y - mean."""
    rows, sums = grams[..., 0, 0], grams[..., 0, 1:]
    scale = torch.cat([scale, torch.ones_like(scale[..., :1])], -1)
    cross = sums.unsqueeze(-1) * mean.unsqueeze(-2)
    products = grams[..., 1:, 1:] - cross - cross.mT
    products = products + rows[..., None, None] * mean.unsqueeze(-1) * mean.unsqueeze(-2)
    products = products / scale.unsqueeze(-1) / scale.unsqueeze(-2)
    return Problem(products[..., :-1, :-1], products[..., :-1, -1], products[..., -1, -1], rows)
