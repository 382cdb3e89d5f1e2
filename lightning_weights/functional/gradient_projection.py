"""Low-rank projections of gradients: the side, the vectors, the size, and moments carried from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.low_rank import SVDMethod, fix_signs, truncated_svd

ProjectionType = Literal["std", "reverse_std", "left", "right", "full"]
MomentTransport = Literal["none", "rotate", "reset"]


class Projection(NamedTuple):
    """Orthonormal vectors on one or both sides of a gradient D: R = LᵀDRᵀ has the projected size.

    Attributes:
        left: L, (a, p) with orthonormal columns, or None.
        right: (p, b) with orthonormal rows, or None.
    """

    left: Tensor | None
    right: Tensor | None


def projected_sides(rows: int, columns: int, proj_type: ProjectionType) -> tuple[bool, bool]:
    """Tell on which sides a gradient is projected.

    Args:
        rows: a.
        columns: b.
        proj_type: ``std`` projects the shorter side, which leaves less than ``reverse_std`` does; ``left`` and
            ``right`` name it, ``full`` projects both.

    Returns:
        Whether it is projected from the left, and from the right.

    Examples:
        >>> projected_sides(12, 7, "std"), projected_sides(6, 11, "std")
        ((False, True), (True, False))
    """
    check_choice("proj_type", proj_type, get_args(ProjectionType))
    if proj_type == "full":
        return True, True
    if proj_type in ("left", "right"):
        return proj_type == "left", proj_type == "right"
    right = (rows >= columns) == (proj_type == "std")
    return not right, right


def projected_numel(rows: int, columns: int, rank: int, proj_type: ProjectionType = "std") -> int:
    """Count the elements of optimizer state for one matrix: projection and two moments.

    Args:
        rows: a.
        columns: b.
        rank: p; min(a, b) where it is larger.
        proj_type: Which sides are projected.

    Returns:
        Elements; for p below both sides and ``std`` that is 2p·max(a, b) + p·min(a, b).

    Examples:
        >>> projected_numel(4096, 1024, 128), 2 * 4096 * 1024
        (1179648, 8388608)
    """
    check_number("rank", rank, low=1, whole=True)
    left, right = projected_sides(rows, columns, proj_type)
    p = min(rank, rows, columns)
    moments = (p if left else rows) * (p if right else columns)
    return 2 * moments + p * (rows * left + columns * right)


def gradnorm_lorp_numel(out_features: int, in_features: int, r: int, rank: int) -> tuple[int, int]:
    """Count the trained weights of a layer in ``lowrank`` mode, without bias, and their optimizer state.

    Args:
        out_features: m.
        in_features: n.
        r: Rank of the factors.
        rank: Rank p of the gradients' projection.

    Returns:
        r(m + n) + m weights, and 2p(m + n) + 2pr + 2m elements of state for p ≤ r.

    Examples:
        >>> gradnorm_lorp_numel(128, 64, r=8, rank=4)
        (1664, 1856)
    """
    factors = projected_numel(out_features, r, rank) + projected_numel(r, in_features, rank)
    return r * (out_features + in_features) + out_features, factors + 2 * out_features


def gradient_projection(
    gradient: Tensor, rank: int, proj_type: ProjectionType = "std", *, svd: SVDMethod = "exact", sign_fix: bool = True
) -> Projection:
    """Return the projection onto the leading singular vectors of a gradient.

    Args:
        gradient: D of shape (a, b).
        rank: p; min(a, b) where it is larger.
        proj_type: Which sides are projected.
        svd: How singular vectors are computed.
        sign_fix: Whether the largest entry of every vector is made positive; else signs are the library's.

    Returns:
        Vectors in fp32 or wider.

    Raises:
        ValueError: If the gradient holds NaN or infinity.

    Examples:
        >>> import torch
        >>> gradient_projection(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), rank=1).right
        tensor([[1., 0.]])
    """
    rows, columns = gradient.shape
    left, right = projected_sides(rows, columns, proj_type)
    found = truncated_svd(gradient, min(rank, rows, columns), svd)
    rows_left, rows_right = found.u.T, found.vh
    if sign_fix:
        rows_left, rows_right = fix_signs(rows_left), fix_signs(rows_right)
    return Projection(rows_left.T.contiguous() if left else None, rows_right.contiguous() if right else None)


def keep_projection(gradient: Tensor, projected: Tensor) -> None:
    """Put a projected gradient in the place of the whole one: into its first rows and columns, with zeros beside.

    Orthonormal vectors leave norms, so this has the norm of LRRᵗ, which is what the projection sees of the gradient.

    Args:
        gradient: Where to, (a, b).
        projected: R, of a projected shape.

    Examples:
        >>> import torch
        >>> gradient = torch.ones(2, 3)
        >>> keep_projection(gradient, torch.tensor([[5.0], [6.0]]))
        >>> gradient, kept_projection(gradient, (2, 1))
        (tensor([[5., 0., 0.],
                [6., 0., 0.]]), tensor([[5.],
                [6.]]))
    """
    gradient.zero_()
    kept_projection(gradient, projected.shape).copy_(projected)


def kept_projection(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    """Return what `keep_projection` has put in the place of a gradient, on its memory.

    Args:
        gradient: D's place, (a, b).
        shape: R's shape.
    """
    return gradient[: shape[0], : shape[1]]


def transport_moments(exp_avg: Tensor, exp_avg_sq: Tensor, old: Projection, new: Projection) -> tuple[Tensor, Tensor]:
    r"""Express moments of one projection in the basis of another.

    With the overlap Q of both bases the first moment turns by Q and the second by its squared entries, what a rotation
    does to the variances of independent coordinates.

    Args:
        exp_avg: First moment in the old basis.
        exp_avg_sq: Second moment in the old basis.
        old: The projection that the moments belong to.
        new: The projection of the same sides that they shall belong to.

    Returns:
        Both moments in the new basis.

    Examples:
        >>> import torch
        >>> first, second = Projection(None, torch.eye(2)), Projection(None, torch.eye(2).flip(0))
        >>> transport_moments(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), first, second)
        (tensor([[2., 1.]]), tensor([[4., 3.]]))
    """
    if old.left is not None and new.left is not None:
        overlap = new.left.T @ old.left
        exp_avg, exp_avg_sq = overlap @ exp_avg, overlap.square() @ exp_avg_sq
    if old.right is not None and new.right is not None:
        overlap = old.right @ new.right.T
        exp_avg, exp_avg_sq = exp_avg @ overlap, exp_avg_sq @ overlap.square()
    return exp_avg, exp_avg_sq
