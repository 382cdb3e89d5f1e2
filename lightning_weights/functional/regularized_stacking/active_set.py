"""Lasso and elastic-net paths without a tolerance: linear systems in the non-zero weights, for all paths at once."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-10  # share of a feature's square that is added where features are collinear
SLACK = 1e-8  # share of the largest moment by which a slope may exceed the penalty
STEPS = 20  # systems per feature and path at most, beside one for every penalty; then it stays where it is


def active_set_paths(gram: Tensor, moments: Tensor, own: Tensor, l1: Tensor, l2: Tensor) -> Tensor:
    r"""Solve the problems of ``coordinate_descent`` without a tolerance, along paths of penalties.

    With signs s of the weights A that are not zero, $(G_{AA} + \lambda_2 I)\,w_A = m_A - \lambda_1 s_A$. On the way
    from the present weights to that solution, the first one that would change its sign becomes zero and leaves A;
    if there is none, the one whose slope exceeds λ₁ most joins; if there is none either, the problem is solved, and the
    next penalty of the path begins where it ended. The objective never rises.

    Args:
        gram: G, of shape (F, p, p).
        moments: m, of shape (F, p).
        own: Which G and m each path has, of shape (C,).
        l1: λ₁ > 0 along each path, of shape (C, L).
        l2: λ₂ ≥ 0 likewise.

    Returns:
        Weights, of shape (C, L, p).

    Source: Lee, Battle, Raina, Ng 2006, "Efficient sparse coding algorithms", with the first change of sign in place of
    the best.

    Examples:
        >>> gram, moments = torch.eye(2, dtype=torch.float64)[None], torch.tensor([[2.0, -0.5]], dtype=torch.float64)
        >>> l1 = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
        >>> active_set_paths(gram, moments, torch.tensor([0]), l1, 0 * l1).round(decimals=6)[0, 1]
        tensor([1., 0.], dtype=torch.float64)
    """
    count, length = l1.shape
    found = gram.new_zeros(count, length, gram.shape[-1])
    path = torch.arange(count, device=gram.device)
    step = torch.zeros_like(path)
    weights, signs = gram.new_zeros(2, count, gram.shape[-1]).unbind()
    slack = SLACK * moments.abs().amax(1)
    for _ in range(length + STEPS * gram.shape[-1]):
        if len(path) == 0:
            break
        fold = own[path]
        first, second = l1[path, step, None], l2[path, step, None]
        weights, signs, slopes = _advance(gram, moments, fold, weights, signs, first, second)
        excess = torch.where(signs == 0.0, slopes.abs() - first, -torch.inf)
        most, where = excess.max(1)
        turned = (signs != 0.0) & (weights == 0.0)
        whole = ~turned.any(1)
        joins = whole & (most > slack[fold])
        signs = signs.masked_fill(turned, 0.0)
        signs[joins, where[joins]] = slopes[joins, where[joins]].sign()
        solved = whole & ~joins
        found[path[solved], step[solved]] = weights[solved]
        step = step + solved
        left = step < length
        path, step, weights, signs = path[left], step[left], weights[left], signs[left]
    unsolved = torch.arange(length, device=step.device) >= step[:, None]  # of paths that ran out of steps
    found[path] = torch.where(unsolved[:, :, None], weights[:, None], found[path])
    return found


def _advance(
    gram: Tensor, moments: Tensor, fold: Tensor, weights: Tensor, signs: Tensor, l1: Tensor, l2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Go towards the solution of the system, up to the first change of sign: that weight is zero, its sign is not."""
    active = signs != 0.0
    number = active.sum(1, keepdim=True)
    width = max(1, int(number.max()))
    order = (~active).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    real = torch.arange(width, device=order.device) < number
    rows = gram[fold[:, None], order]
    system = rows.gather(2, order[:, None].expand(-1, width, -1)) * (real[:, :, None] & real[:, None])
    diagonal = system.diagonal(dim1=1, dim2=2)
    diagonal.add_(torch.where(real, RIDGE * diagonal + l2, 1.0))
    now, sign, here = weights.gather(1, order), signs.gather(1, order), moments[fold]
    right = (here.gather(1, order) - l1 * sign) * real
    there = torch.cholesky_solve(right[:, :, None], torch.linalg.cholesky_ex(system).L)[:, :, 0]
    turns = real & (there * sign <= 0.0)
    share = torch.where(turns, now / (now - there), torch.inf).nan_to_num(0.0, posinf=torch.inf)
    nearest = share.amin(1, keepdim=True).clamp(0.0, 1.0)
    now = (now + nearest * (there - now)).masked_fill(turns & (share <= nearest), 0.0) * real
    weights = torch.zeros_like(weights).scatter_(1, order, now)
    return weights, signs, here - (now[:, None] @ rows)[:, 0] - l2 * weights
