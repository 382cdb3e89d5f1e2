"""Lasso and elastic-net paths without a tolerance: linear systems in the non-zero weights, for all paths at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

RIDGE = 1e-10  # share of a feature's square that is added where features are collinear
SLACK = 1e-8  # share of the largest moment by which a slope may exceed the penalty
AT_ONCE = 0.2  # share of the largest excess from which features join together
PATHS = 64  # of about as many weights, whose systems are solved together and stay in the cache
STEPS = 20  # systems per feature and path at most, beside one for every penalty; then it stays where it is


def active_set_paths(gram: Tensor, moments: Tensor, own: Tensor, l1: Tensor, l2: Tensor) -> Tensor:
    r"""Solve the problems of ``coordinate_descent`` without a tolerance, along paths of penalties.

    With signs s of the weights A that are not zero, $(G_{AA} + \lambda_2 I)\,w_A = m_A - \lambda_1 s_A$. On the way
    from the present weights to that solution, the first one that would change its sign becomes zero and leaves A;
    if there is none, those whose slopes exceed λ₁ most join; if there is none either, the problem is solved, and the
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
    the best, and several weights that join at once.

    Examples:
        >>> gram, moments = torch.eye(2, dtype=torch.float64)[None], torch.tensor([[2.0, -0.5]], dtype=torch.float64)
        >>> l1 = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
        >>> active_set_paths(gram, moments, torch.tensor([0]), l1, 0 * l1).round(decimals=6)[0, 1]
        tensor([1., 0.], dtype=torch.float64)
    """
    count, length = l1.shape
    # one feature more, which is always zero: it fills the systems of paths that have fewer weights than others
    gram, moments = functional.pad(gram, (0, 1, 0, 1)), functional.pad(moments, (0, 1))
    found = gram.new_zeros(count, length, gram.shape[-1])
    path = torch.arange(count, device=gram.device)
    step = torch.zeros_like(path)
    weights, signs, slopes = gram.new_zeros(3, count, gram.shape[-1]).unbind()
    turned = torch.zeros_like(weights, dtype=torch.bool)
    slack = SLACK * moments.abs().amax(1, keepdim=True)
    for _ in range(length + STEPS * (gram.shape[-1] - 1)):
        if len(path) == 0:
            break
        fold = own[path]
        first, second = l1[path, step, None], l2[path, step, None]
        for some in signs.ne(0.0).sum(1).argsort().split(PATHS):
            now = weights[some], signs[some], first[some], second[some]
            weights[some], slopes[some], turned[some] = _advance(gram, moments, fold[some], *now)
        excess = torch.where(signs == 0.0, slopes.abs() - first, 0.0)
        whole = ~turned.any(1, keepdim=True)
        joins = whole & (excess > slack[fold]) & (excess >= AT_ONCE * excess.amax(1, keepdim=True))
        signs = torch.where(joins, slopes.sign(), signs.masked_fill(turned, 0.0))
        solved = whole[:, 0] & ~joins.any(1)
        found[path[solved], step[solved]] = weights[solved]
        step = step + solved
        left = step < length
        tables = path, step, weights, signs, slopes, turned
        path, step, weights, signs, slopes, turned = (table[left] for table in tables)
    unsolved = torch.arange(length, device=step.device) >= step[:, None]  # of paths that ran out of steps
    found[path] = torch.where(unsolved[:, :, None], weights[:, None], found[path])
    return found[..., :-1]


def _advance(
    gram: Tensor, moments: Tensor, fold: Tensor, weights: Tensor, signs: Tensor, l1: Tensor, l2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Go towards the solution of the system, up to the first change of sign.

    Returns weights, m - G w - l2 w, and whose sign changes.
    """
    active = signs != 0.0
    number = active.sum(1, keepdim=True)
    width = max(1, int(number.max()))
    real = torch.arange(width, device=number.device) < number
    order = (~active).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    order = torch.where(real, order, gram.shape[-1] - 1)
    rows = gram[fold[:, None], order]
    system = rows.gather(2, order[:, None].expand(-1, width, -1))
    diagonal = system.diagonal(dim1=1, dim2=2)
    diagonal.add_(torch.where(real, RIDGE * diagonal + l2, 1.0))
    now, sign, here = weights.gather(1, order), signs.gather(1, order), moments[fold]
    right = here.gather(1, order) - l1 * sign
    there = torch.cholesky_solve(right[:, :, None], torch.linalg.cholesky_ex(system).L)[:, :, 0]
    turns = real & (there * sign <= 0.0)
    share = torch.where(turns, now / (now - there), torch.inf).nan_to_num(0.0, posinf=torch.inf)
    nearest = share.amin(1, keepdim=True).clamp(0.0, 1.0)
    turned = turns & (share <= nearest)
    now = (now + nearest * (there - now)).masked_fill(turned, 0.0)
    weights = torch.zeros_like(weights).scatter_(1, order, now)
    slopes = here - (now[:, None] @ rows)[:, 0] - l2 * weights
    return weights, slopes, torch.zeros_like(active).scatter_(1, order, turned)
