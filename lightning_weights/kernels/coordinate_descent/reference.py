"""Specification of coordinate descent for lasso and elastic net in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

Solutions = tuple[Tensor, Tensor, Tensor]


def duality_gap(
    weights: Tensor, slopes: Tensor, moments: Tensor, l1: Tensor, l2: Tensor, power: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return how far from the optimum weights can be at most, and the largest slope that the dual point has to bear.

    With the residual r of N rows, $\theta = r\,\min(1, \lambda_1 / d) / N$ is the dual point, where d is the largest
    $|m - Gw - \lambda_2 w|$.

    Args:
        weights: w, (p, problems).
        slopes: m - G w, of the same shape.
        moments: m, of the same shape.
        l1: λ₁ of every problem.
        l2: λ₂ of every problem.
        power: Mean square of the target, of every problem.

    Returns:
        The gap and d of every problem.

    Examples:
        >>> one = torch.ones(1, 1)
        >>> gap, largest = duality_gap(0 * one, one, one, one[0], 0 * one[0], one[0])  # at λ₁ = |m|, zero is optimal
        >>> gap.item(), largest.item()
        (0.0, 1.0)
    """
    explained, left = (moments * weights).sum(dim=0), (slopes * weights).sum(dim=0)
    largest = (slopes - l2 * weights).abs().amax(dim=0)
    spent = power - explained - left + l2 * weights.square().sum(dim=0)
    share = l1 / torch.maximum(l1, largest)
    primal = 0.5 * spent + l1 * weights.abs().sum(dim=0)
    return primal + 0.5 * share.square() * spent - share * (power - explained), largest


def coordinate_descent_reference(
    gram: Tensor,
    moments: Tensor,
    path_gram: Tensor,
    l1: Tensor,
    l2: Tensor,
    target_power: Tensor,
    starts: Tensor | None,
    tolerance: float,
    max_sweeps: int,
) -> Solutions:
    """Solve the problems one by one, one coordinate after the other.

    Args:
        gram: G, (F, p, p).
        moments: m, (F, p).
        path_gram: Which G and m each path has, (C,).
        l1: λ₁ of all problems, (C, L).
        l2: λ₂ likewise.
        target_power: Mean square of each target, (F,).
        starts: Weights that the paths start from, (C, p); None for zero.
        tolerance: Largest update in terms of the largest weight, and gap in terms of the target's power, to stop at.
        max_sweeps: Most sweeps of one problem.

    Returns:
        Weights, (C, L, p), sweeps and gaps, (C, L).

    Examples:
        >>> gram, moments = torch.eye(2)[None], torch.tensor([[2.0, 0.5]])
        >>> path, one = torch.tensor([0]), torch.ones(1, 1)
        >>> weights, sweeps, gap = coordinate_descent_reference(
        ...     gram, moments, path, one, 0 * one, torch.tensor([5.0]), None, tolerance=1e-4, max_sweeps=10
        ... )
        >>> weights[0, 0]
        tensor([1., 0.])
    """
    weights, sweeps = gram.new_zeros(*l1.shape, gram.shape[1]), torch.zeros_like(l1, dtype=torch.int64)
    gap = torch.zeros_like(l1)
    for path, fold in enumerate(path_gram.tolist()):
        w = gram.new_zeros(gram.shape[1]) if starts is None else starts[path].clone()
        for step in range(l1.shape[1]):
            penalties = l1[path, step], l2[path, step]
            count, found = _solve(gram[fold], moments[fold], w, *penalties, target_power[fold], tolerance, max_sweeps)
            weights[path, step], sweeps[path, step], gap[path, step] = w, count, found
    return weights, sweeps, gap


def _solve(
    gram: Tensor, moments: Tensor, w: Tensor, l1: Tensor, l2: Tensor, power: Tensor, tolerance: float, most: int
) -> tuple[int, Tensor]:
    """Change the weights of one problem in place; return sweeps and gap."""
    kept = gram.diagonal() > 0.0
    gap, kept = _screened(gram, moments, w, l1, l2, power, kept, first=True, goal=tolerance * power)
    if 0.0 <= gap <= tolerance * power:
        return 0, gap
    for sweep in range(1, most + 1):
        before = w.clone()
        for j in kept.nonzero().flatten().tolist():
            rest = moments[j] - gram[j] @ w + w[j] * gram[j, j]
            w[j] = (rest - rest.clamp(-l1, l1)) / (gram[j, j] + l2)
        if (w - before).abs().max() <= tolerance * w.abs().max() or sweep == most:
            gap, kept = _screened(gram, moments, w, l1, l2, power, kept, first=False, goal=tolerance * power)
            if gap <= tolerance * power:
                break
    return sweep, gap


def _screened(
    gram: Tensor, moments: Tensor, w: Tensor, l1: Tensor, l2: Tensor, power: Tensor, kept: Tensor, *, first: bool,
    goal: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gap, and what it leaves of the coordinates; the others' weights become zero."""
    slopes = moments - gram @ w
    gaps, largest = duality_gap(w[:, None], slopes[:, None], moments[:, None], l1, l2, power)
    gap = gaps[0]
    if (gap >= 0.0 or not first) and gap <= goal:
        return gap, kept
    reach = (slopes - l2 * w).abs() / torch.maximum(l1, largest)
    kept = kept & ((1.0 - reach) / (gram.diagonal() + l2).sqrt() <= (2.0 * gap.abs()).sqrt() / l1)
    w.masked_fill_(~kept, 0.0)
    return gap, kept
