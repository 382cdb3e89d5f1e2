"""Principal weights: which entries of a matrix LIFT trains, and what happens when the choice changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError, check_choice, check_number
from lightning_weights.functional.full_precision import full_precision
from lightning_weights.functional.low_rank import SVDMethod, truncated_svd
from lightning_weights.functional.pruning import largest_mask

Selector = Literal["lift", "magnitude", "random", "gradient", "bottom"]

INDICES = 1 << 31  # entries that an int32 index reaches


def budget(shape: Sequence[int], *, budget_rank: int | None = None, density: float | None = None) -> int:
    r"""Return how many entries of a matrix are trained: as many as LoRA of a rank has weights, or a fraction of all.

    $$k = \min(q\,(m + n),\; m n) \qquad\text{or}\qquad k = \mathrm{round}(\text{density} \cdot m n)$$

    Args:
        shape: (m, n).
        budget_rank: q ≥ 1, the rank of the LoRA with as many weights.
        density: Fraction in (0, 1] of all entries; at least one entry is taken.

    Raises:
        ValueError: If not exactly one of the two is given, or it is out of range.

    Examples:
        >>> budget((20, 12), budget_rank=2), budget((20, 12), density=0.05), budget((2, 2), budget_rank=8)
        (64, 12, 4)
    """
    rows, columns = shape
    if (budget_rank is None) == (density is None):
        raise ValueError(
            f"budget_rank is {budget_rank!r} and density {density!r}; exactly one of them says how many entries are "
            f"trained, and the other one is None"
        )
    if budget_rank is not None:
        check_number("budget_rank", budget_rank, low=1, whole=True)
        return min(budget_rank * (rows + columns), rows * columns)
    check_number("density", density, low=0.0, high=math.nextafter(1.0, 2.0), low_allowed=False)
    assert density is not None
    return max(1, round(density * rows * columns))


def low_rank_approximation(weight: Tensor, rank: int, method: SVDMethod = "exact", *, seed: int = 0) -> Tensor:
    r"""Return the best approximation of a matrix of a given rank.

    $$W_r = U_{:,:r}\,\mathrm{diag}(s_{1..r})\,V_{:,:r}^\top$$

    Args:
        weight: W, (m, n).
        rank: r ≥ 1; from min(m, n) on the result is W itself, without a decomposition.
        method: How singular vectors are found: ``exact``, ``gram`` or ``randomized``.
        seed: Of the randomized method.

    Returns:
        W_r in fp32, in fp64 for fp64 weights, without gradient.

    Raises:
        ValueError: If the weight holds NaN or infinity, or an argument is out of range.

    Examples:
        >>> low_rank_approximation(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), rank=1)
        tensor([[3., 0.],
                [0., 0.]])
    """
    check_number("rank", rank, low=1, whole=True)
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    if rank >= min(weight.shape):
        if not wide.isfinite().all():
            raise ValueError("the weight holds NaN or infinity; there is no choice among its entries")
        return wide
    with full_precision(), torch.autocast(weight.device.type, enabled=False):
        u, s, vh = truncated_svd(wide, rank, method, seed=seed)
        return (u * s) @ vh


@torch.no_grad()
def select_indices(
    weight: Tensor,
    count: int,
    selector: Selector = "lift",
    *,
    filter_rank: int = 128,
    svd: SVDMethod = "gram",
    gradient: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    r"""Choose exactly k entries of a matrix; for LIFT those that are largest after rank reduction.

    $$M = \operatorname{top}_k |W_r|$$

    Args:
        weight: W, (m, n).
        count: k, from 1 to m·n.
        selector: ``lift`` is the equation above; ``bottom`` takes the k smallest entries of |W_r|, ``magnitude`` the
            largest of |W|, ``gradient`` the largest of |G|, ``random`` a sample that depends on ``seed`` alone.
        filter_rank: r, for ``lift`` and ``bottom``; from min(m, n) on W_r is W.
        svd: How W_r is found: ``exact``, ``gram`` or ``randomized``.
        gradient: G, for ``gradient``.
        seed: Of ``random`` and of the randomized decomposition, drawn from generators of their own.

    Returns:
        Row-major flat indices, int32, ascending, on the weight's device. Of equal entries those with the lowest index
        are taken.

    Raises:
        ValueError: If an argument is out of range, the gradient is missing, or what is compared is not finite.
        ShardedParameterError: If the weight is sharded: singular vectors need the whole matrix.

    Source: Liu et al., "LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for
    Reasoning-Focused Supervised Fine-Tuning", 2025, arXiv:2506.00772. The released code calls its default
    ``lift_sparse`` and takes the k smallest entries of |W_r| under it, since it looks for "largest" in that name:
    ``bottom`` repeats this.

    Examples:
        >>> weight = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.9]])
        >>> select_indices(weight, 2, filter_rank=1, svd="exact"), select_indices(weight, 2, "magnitude")
        (tensor([0, 1], dtype=torch.int32), tensor([0, 3], dtype=torch.int32))
    """
    if hasattr(weight, "placements"):
        raise ShardedParameterError(
            "principal weights need the whole matrix, and this one is sharded; train with DDP, or gather it first"
        )
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; allowed are matrices")
    check_number("count", count, low=1, high=weight.numel() + 1, whole=True)
    check_choice("selector", selector, get_args(Selector))
    if weight.numel() > INDICES:
        raise ValueError(f"weight has {weight.numel()} entries; allowed are {INDICES}, which int32 indices reach")
    if selector == "random":
        order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(seed), device="cpu")
        return order[:count].sort().values.to(weight.device, torch.int32)
    if selector in ("lift", "bottom"):
        scores = low_rank_approximation(weight, filter_rank, svd, seed=seed)
    elif selector == "magnitude":
        scores = weight.detach()
    else:
        if gradient is None or gradient.shape != weight.shape:
            raise ValueError("selector='gradient' compares the entries of a dense gradient, of the weight's shape")
        scores = gradient.detach()
    flat = scores.flatten()
    if selector == "bottom":  # mirrored twice, so that equal entries with the lowest index are the ones left over
        mask = ~largest_mask(flat.flip(0), weight.numel() - count).flip(0)
    else:
        mask = largest_mask(flat, count)
    return mask.nonzero().flatten().to(torch.int32)


def gather_entries(dense: Tensor, indices: Tensor) -> Tensor:
    """Return the chosen entries of a matrix, in the order of the indices.

    Args:
        dense: Matrix of any strides.
        indices: Row-major flat indices.

    Examples:
        >>> gather_entries(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 2], dtype=torch.int32))
        tensor([2., 3.])
    """
    return dense.reshape(-1).index_select(0, indices)


def carry(values: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Move what belongs to the entries of one choice to those of another: zero for new ones, dropped for lost ones.

    Args:
        values: One value per entry of ``before``.
        before: Ascending flat indices.
        after: Ascending flat indices of the new choice.

    Examples:
        >>> carry(torch.tensor([1.0, 2.0]), torch.tensor([3, 5]), torch.tensor([5, 6]))
        tensor([2., 0.])
    """
    places, kept = _find(after, before)
    return torch.where(kept, values[places], 0.0)


def mask_churn(before: Tensor, after: Tensor) -> float:
    """Return the share of entries of a choice that the one before did not have.

    Args:
        before: Ascending flat indices.
        after: Ascending flat indices of the new choice.

    Examples:
        >>> mask_churn(torch.tensor([3, 5]), torch.tensor([5, 6]))
        0.5
    """
    return 1.0 - int(_find(after, before)[1].sum()) / len(after)


@torch.no_grad()
def remember_originals(known: Tensor, originals: Tensor, selected: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Add the entries of a new choice to those whose original values are remembered.

    An entry that was never selected still has its original value, so this is called after every choice and before the
    step that follows it.

    Args:
        known: Ascending flat indices of all entries selected so far; empty at first.
        originals: Their original values.
        selected: Ascending flat indices of the new choice.
        weight: The matrix now.

    Returns:
        Indices and original values of the union.

    Examples:
        >>> none = torch.empty(0, dtype=torch.int32)
        >>> remember_originals(none, torch.empty(0), torch.tensor([1, 2]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        (tensor([1, 2], dtype=torch.int32), tensor([2., 3.]))
    """
    new = selected[~_find(selected, known)[1]].to(known.dtype)
    union, order = torch.cat([known, new]).sort()
    return union, torch.cat([originals, gather_entries(weight.detach(), new).to(originals.dtype)])[order]


def _find(wanted: Tensor, ascending: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each wanted index stands in an ascending list, or would, and whether it is there."""
    if len(ascending) == 0:
        return torch.zeros_like(wanted, dtype=torch.int64), torch.zeros_like(wanted, dtype=torch.bool)
    places = torch.searchsorted(ascending, wanted.to(ascending.dtype)).clamp_(max=len(ascending) - 1)
    return places, ascending[places] == wanted
