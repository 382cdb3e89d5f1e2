"""Lasso and elastic net: the paths of all folds and ratios solved together on Gram matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_weights.functional.regularized_stacking.active_set import active_set_paths
from lightning_weights.functional.regularized_stacking.fold_grams import CrossValidation, Problem, held_out_mse
from lightning_weights.functional.regularized_stacking.linear_fit import LinearFit
from lightning_weights.kernels.coordinate_descent import coordinate_descent, duality_gap

L1_PENALTIES = tuple(np.logspace(-5, 1, 30).tolist())
L1_RATIOS = (0.1, 0.5, 0.7, 0.9, 0.95, 0.99, 1.0)
TOLERANCE, MAX_SWEEPS = 1e-4, 10_000


def elastic_net_paths(
    problem: Problem, penalties: Tensor, ratios: Tensor, tolerance: float = TOLERANCE, max_sweeps: int = MAX_SWEEPS
) -> tuple[Tensor, Tensor]:
    r"""Solve the elastic net along paths of penalties.

    $$\min_w \tfrac{1}{2N} \lVert y - X w \rVert^2 + \alpha \rho \lVert w \rVert_1
    + \tfrac{\alpha (1 - \rho)}{2} \lVert w \rVert^2$$

    Coordinate descent goes along a path, each solution the start of the next, and stops as scikit-learn's does; points
    that it has not solved in ``max_sweeps`` are solved without a tolerance ([`active_set_paths`][]).

    Args:
        problem: Sums over the rows, of batch shape (B,).
        penalties: α of R paths of L points for each problem, of shape (B, R, L); the largest first.
        ratios: ρ, of the same shape.
        tolerance: Largest relative change of a weight, and duality gap over the target's mean square, at the end.
        max_sweeps: Most sweeps over the coordinates before active sets take over.

    Returns:
        Weights of shape (B, R, L, p), and duality gaps over the target's mean square, of shape (B, R, L).

    Examples:
        >>> problem = Problem(*(torch.tensor(v, dtype=torch.float64) for v in ([[[4.0]]], [[2.0]], [3.0], [2.0])))
        >>> weights, gap = elastic_net_paths(problem, torch.tensor([[[1.0, 0.5]]]), torch.ones(1, 1, 2))
        >>> weights.flatten()
        tensor([0.0000, 0.2500], dtype=torch.float64)
    """
    shape = penalties.shape
    alpha, rho = penalties.to(problem.gram).flatten(0, 1), ratios.to(problem.gram).flatten(0, 1)
    gram, moments = problem.gram / problem.rows[:, None, None], problem.moments / problem.rows[:, None]
    power, own = problem.power / problem.rows, torch.arange(shape[0], device=alpha.device).repeat_interleave(shape[1])
    l1, l2 = alpha * rho, alpha * (1 - rho)
    found = coordinate_descent(gram, moments, own, l1, l2, power, tolerance=tolerance, max_sweeps=max_sweeps)
    weights, gap, target = found.weights, found.gap, power[own][:, None]
    late = (gap > tolerance * target).any(1).nonzero().flatten()
    if len(late):
        fold = own[late]
        exact = active_set_paths(gram, moments, fold, l1[late], l2[late])
        here = moments[fold][:, None].expand_as(exact)
        w, slopes, m = (tensor.permute(2, 0, 1) for tensor in (exact, here - exact @ gram[fold], here))
        exact_gap, _ = duality_gap(w, slopes, m, l1[late], l2[late], target[late])
        better = (gap[late] > tolerance * target[late]) & (exact_gap < gap[late])
        weights[late] = torch.where(better[..., None], exact, weights[late])
        gap[late] = torch.where(better, exact_gap, gap[late])
    return weights.view(*shape, -1), (gap / target.clamp(min=torch.finfo(power.dtype).tiny)).view(shape)


def fit_elastic_nets(
    sets: CrossValidation,
    ratios: Sequence[Sequence[float]],
    penalties: Sequence[float] = L1_PENALTIES,
    tolerance: float = TOLERANCE,
    max_sweeps: int = MAX_SWEEPS,
) -> list[LinearFit]:
    r"""Choose penalties and ratios by the inner folds, and fit, for several lists of ratios with the same paths.

    The point with the least mean squared error, averaged over the inner folds, is taken; of equal ones, that of the
    first ratio, and of the largest penalty. The lasso is the elastic net with the one ratio 1.

    Scores belong to solutions without a tolerance ([`active_set_paths`][]); scikit-learn's belong to where its sweeps
    stop, which for near-collinear features is some way off, so that of two nearly equal scores another may be the
    smaller. The model with the chosen penalty comes from [`elastic_net_paths`][].

    Args:
        sets: Training sets with their inner folds.
        ratios: Grids of ρ in (0, 1], one for each learner.
        penalties: Grid of α > 0.
        tolerance: Largest relative change of a weight, and duality gap over the target's mean square, at the end.
        max_sweeps: Most sweeps over the coordinates before active sets take over.

    Returns:
        For each list of ratios, one model per training set.

    Examples:
        >>> from lightning_weights.functional.regularized_stacking.fold_grams import fold_grams
        >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> sets = fold_grams(x, x[:, 0], torch.arange(60)[:, None] % 3)
        >>> lasso, net = fit_elastic_nets(sets, [[1.0], [0.5, 1.0]], [0.01, 1.0])
        >>> lasso.penalty.item(), net.l1_ratio.item()
        (0.01, 1.0)
    """
    alpha = sets.whole.gram.new_tensor(sorted(penalties, reverse=True))
    every = list(dict.fromkeys(ratio for some in ratios for ratio in some))  # a path that two learners share runs once
    rho = sets.whole.gram.new_tensor(every)
    scores = _inner_scores(sets, alpha, rho)
    own = [[every.index(ratio) for ratio in some] for some in ratios]
    best = torch.stack([scores[:, columns].flatten(1).argmin(1) for columns in own], 1)  # (sets, learners)
    chosen_alpha = alpha[best % len(alpha)]
    chosen_rho = torch.stack([rho[own[i]][best[:, i] // len(alpha)] for i in range(len(own))], 1)
    final, final_gap = elastic_net_paths(
        sets.whole, chosen_alpha[..., None], chosen_rho[..., None], tolerance, max_sweeps
    )
    return [
        LinearFit(
            final[:, i, 0],
            chosen_alpha[:, i],
            chosen_rho[:, i],
            scores[:, own[i]].flatten(1),
            final_gap[:, i, 0],
            tolerance,
        )
        for i in range(len(own))
    ]


def _inner_scores(sets: CrossValidation, alpha: Tensor, rho: Tensor) -> Tensor:
    """Return the mean errors over the inner folds, of shape (S, R, L)."""
    inner = Problem(*(part.flatten(0, 1) for part in sets.inner))
    own = torch.arange(len(inner.rows), device=alpha.device).repeat_interleave(len(rho))
    ratio = rho.repeat(len(inner.rows))[:, None]
    gram, moments = inner.gram / inner.rows[:, None, None], inner.moments / inner.rows[:, None]
    weights = active_set_paths(gram, moments, own, alpha * ratio, alpha * (1 - ratio))
    each = weights.view(*sets.inner.rows.shape, -1, weights.shape[-1])
    scores: Tensor = held_out_mse(sets.held, each).mean(1).unflatten(1, (len(rho), len(alpha)))
    return scores
