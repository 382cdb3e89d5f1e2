"""The volume that points dominate: exact sweeps in two and three dimensions, slices above."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Point = tuple[float, ...]


def hypervolume(
    points: Tensor | Sequence[Sequence[float]],
    reference: Tensor | Sequence[float],
    maximize: Sequence[bool] | None = None,
) -> float:
    r"""Return the Lebesgue measure of what points dominate and what dominates the reference.

    $$HV(P; r) = \lambda\Bigl( \bigcup_{p \in P} \{\, x : r \preceq x \preceq p \,\} \Bigr)$$

    Points that are not better than the reference in every objective add nothing. Two objectives take
    O(n log n), three nearly so (a sweep over the third with the staircase of the other two), and every further one
    multiplies by n.

    Args:
        points: Vectors of K objectives, (n, K).
        reference: r, (K,).
        maximize: Whether each objective is to be large; None: all of them.

    Returns:
        The volume, at least 0, in double precision.

    Raises:
        ValueError: If lengths differ, or a number is not finite.

    Source: the sweep is that of Beume et al. 2009, doi:10.1109/TEVC.2009.2015575.

    Examples:
        >>> hypervolume([[1.0, 3.0], [2.0, 2.0], [0.5, 9.0]], reference=[0.5, 1.0])
        2.0
        >>> hypervolume([[0.9, 400.0]], reference=[0.5, 600.0], maximize=[True, False])
        80.0
    """
    return volume(gains(points, reference, maximize))


def gains(
    points: Tensor | Sequence[Sequence[float]],
    reference: Tensor | Sequence[float],
    maximize: Sequence[bool] | None = None,
) -> list[Point]:
    """Return by how much each point is better than the reference in every objective.

    Args:
        points: Vectors of K objectives, (n, K).
        reference: r, (K,).
        maximize: Whether each objective is to be large; None: all of them.

    Returns:
        Differences, positive where a point is better.

    Raises:
        ValueError: If lengths differ, or a number is not finite.

    Examples:
        >>> gains([[0.75, 400.0]], reference=[0.5, 600.0], maximize=[True, False])
        [(0.25, 200.0)]
    """
    at = _numbers("reference", reference)
    signs = torch.ones_like(at)
    if maximize is not None:
        signs = torch.tensor([1.0 if large else -1.0 for large in maximize], dtype=torch.float64, device="cpu")
    if not len(at) or signs.shape != at.shape:
        raise ValueError(f"reference has {at.numel()} numbers and maximize {len(signs)}; allowed is one per objective")
    if len(points) == 0:
        return []
    rows = _numbers("points", points)
    if rows.ndim != 2 or rows.shape[1] != len(at):
        raise ValueError(
            f"points have shape {tuple(rows.shape)} and reference has {len(at)} numbers; allowed is one per objective"
        )
    return [tuple(row) for row in (signs * (rows - at)).tolist()]


def volume(points: Sequence[Point]) -> float:
    """Return the volume of the union of the boxes between the origin and points.

    Args:
        points: Points; those with a coordinate that is not positive have no box.

    Examples:
        >>> volume([(1.0, 1.0, 1.0), (0.5, 0.5, 2.0), (-1.0, 9.0, 9.0)])
        1.25
    """
    inside = sorted((point for point in points if min(point) > 0.0), key=lambda point: point[-1], reverse=True)
    if not inside:
        return 0.0
    dimensions = len(inside[0])
    if dimensions == 1:
        return inside[0][0]
    if dimensions == 2:
        return _area(inside)
    if dimensions == 3:
        return _sweep(inside)
    return _slices(inside)


def dominates(a: Point, b: Point) -> bool:
    """Return whether a point is at least as good as another one in every objective.

    Args:
        a: A point.
        b: Another one.

    Examples:
        >>> dominates((1.0, 2.0), (1.0, 1.0)), dominates((1.0, 2.0), (2.0, 1.0))
        (True, False)
    """
    return all(x >= y for x, y in zip(a, b, strict=True))


def _numbers(name: str, values: Tensor | Sequence[Any]) -> Tensor:
    if isinstance(values, Tensor):
        found = values.detach().to("cpu", torch.float64)
    else:
        rows = [list(row) if isinstance(row, Sequence | Tensor) else row for row in values]
        if len({len(row) if isinstance(row, list) else 0 for row in rows}) > 1:
            raise ValueError(f"{name} have different lengths; allowed is one number per objective")
        found = torch.tensor(rows, dtype=torch.float64, device="cpu")
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name} holds {found.tolist()}; allowed are finite numbers")
    return found


def _area(points: Sequence[Point]) -> float:
    """Add up the strips that points, highest first, add on the right of those before."""
    area = right = 0.0
    for x, y in points:
        if x > right:
            area += (x - right) * y
            right = x
    return area


def _sweep(points: Sequence[Point]) -> float:
    """Go down from the highest point and keep the area of all that has been passed."""
    staircase = _Staircase()
    total = 0.0
    for place, (x, y, z) in enumerate(points):
        staircase.add(x, y)
        below = points[place + 1][2] if place + 1 < len(points) else 0.0
        total += staircase.area * (z - below)
    return total


class _Staircase:
    """Points of the plane of which none dominates another, from left to right, and the area below them."""

    def __init__(self) -> None:
        self.xs: list[float] = []
        self.ys: list[float] = []  # falling
        self.area = 0.0

    def add(self, x: float, y: float) -> None:
        """Add a point; what it adds to the area is summed strip by strip, so that nothing is ever subtracted."""
        xs, ys = self.xs, self.ys
        after = bisect_left(xs, x)
        if after < len(xs) and ys[after] >= y:
            return
        stop = after + 1 if after < len(xs) and xs[after] == x else after
        first, right = after, x
        under = ys[after] if after < len(xs) else 0.0
        # strips to the left: below each the staircase is as high as the next point on the right
        while first > 0 and ys[first - 1] <= y:
            self.area += (right - xs[first - 1]) * (y - under)
            first -= 1
            right, under = xs[first], ys[first]
        self.area += (right - (xs[first - 1] if first > 0 else 0.0)) * (y - under)
        xs[first:stop], ys[first:stop] = [x], [y]


def _slices(points: Sequence[Point]) -> float:
    """Cut along the last objective; every slice is the volume of the projections of all points above it."""
    total = area = 0.0
    front: list[Point] = []  # those projections, without the ones that others dominate
    for place, (*coordinates, height) in enumerate(points):
        projected = tuple(coordinates)
        if not any(dominates(other, projected) for other in front):
            area += volume([projected]) - volume([tuple(map(min, other, projected)) for other in front])
            front = [other for other in front if not dominates(projected, other)] + [projected]
        below = points[place + 1][-1] if place + 1 < len(points) else 0.0
        total += area * (height - below)
    return total
