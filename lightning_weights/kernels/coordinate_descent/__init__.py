"""Lasso and elastic net on Gram matrices: paths of penalties by coordinate descent, all of them at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels._op import kernel_mode, register, takes_triton
from lightning_weights.kernels.coordinate_descent.cost import LONGEST
from lightning_weights.kernels.coordinate_descent.eager import solve_side_by_side
from lightning_weights.kernels.coordinate_descent.reference import (
    Solutions,
    coordinate_descent_reference,
    duality_gap,
)

__all__ = ["PathSolutions", "coordinate_descent", "coordinate_descent_reference", "duality_gap"]

DTYPES = (torch.float32, torch.float64)  # of the Triton kernel


class PathSolutions(NamedTuple):
    """What [`coordinate_descent`][] finds.

    Attributes:
        weights: w of every problem, (paths, problems of a path, p).
        sweeps: How often all coordinates were changed, int64; ``max_sweeps`` may mean: not converged.
        gap: Duality gap, which bounds how far the objective is from its minimum; above ``tolerance`` times
            ``target_power``: not converged.

    Examples:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> solved = coordinate_descent(one[None], 2 * one, torch.tensor([0]), one, 0 * one, 4 * one[0])
        >>> solved.weights  # of w²/2 - 2 w + |w|
        tensor([[[1.]]], dtype=torch.float64)
    """

    weights: Tensor
    sweeps: Tensor
    gap: Tensor


def _solve(
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
    tensors = (gram, moments, path_gram, l1, l2, target_power, starts)
    if _takes_triton(gram, path_gram):
        from lightning_weights.kernels.coordinate_descent.kernel import launch_coordinate_descent

        return launch_coordinate_descent(*tensors, tolerance, max_sweeps)
    return solve_side_by_side(*tensors, tolerance, max_sweeps)


def _takes_triton(gram: Tensor, path_gram: Tensor) -> bool:
    if not takes_triton(gram.device.type, [([gram], DTYPES), ([path_gram], (torch.int64,))]):
        return False
    if gram.shape[1] > LONGEST and kernel_mode() == "triton":
        raise KernelUnavailableError(
            f"problems have {gram.shape[1]} weights; the Triton kernel holds up to {LONGEST}. Use 'auto'"
        )
    return gram.shape[1] <= LONGEST


def _solve_fake(
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
    return (
        gram.new_empty(*l1.shape, gram.shape[1]),
        gram.new_empty(l1.shape, dtype=torch.int64),
        gram.new_empty(l1.shape),
    )


_op = register(
    "coordinate_descent",
    "(Tensor gram, Tensor moments, Tensor path_gram, Tensor l1, Tensor l2, Tensor target_power, Tensor? starts, "
    "float tolerance, int max_sweeps) -> (Tensor, Tensor, Tensor)",
    implementation=_solve,
    fake=_solve_fake,
)


def coordinate_descent(
    gram: Tensor,
    moments: Tensor,
    path_gram: Tensor,
    l1: Tensor,
    l2: Tensor,
    target_power: Tensor,
    *,
    starts: Tensor | None = None,
    tolerance: float = 1e-4,
    max_sweeps: int = 1000,
) -> PathSolutions:
    r"""Solve lasso and elastic-net problems whose data are Gram matrices, along paths of penalties.

    $$\min_w \tfrac12 w^\top G w - m^\top w + \lambda_1 \lVert w \rVert_1 + \tfrac{\lambda_2}{2} \lVert w \rVert_2^2$$

    With centred data of N rows, $G = X^\top X / N$ and $m = X^\top y / N$. A path is a row of problems on one G: the
    first one starts from zero or from given weights, each later one from the solution before it. A sweep changes the
    coordinates in their order. Whenever no weight changed by more than ``tolerance`` times the largest, the duality
    gap is compared with ``tolerance`` times ``target_power``: at most as large, the problem is solved; larger,
    coordinates are dropped that the gap proves to be zero. These are the sweeps of scikit-learn's solver.

    Without Triton, stretches of sweeps in which no weight changes its sign are leapt over: they are powers of one
    matrix, in single precision. Where the gap creeps towards its bound, that may be some sweeps sooner or later.

    Args:
        gram: G, (F, p, p), symmetric.
        moments: m, (F, p).
        path_gram: Which G and m each path has, (C,), int64.
        l1: λ₁ > 0 of every problem, (C, L), usually descending along a path.
        l2: λ₂ ≥ 0 of every problem, (C, L).
        target_power: Mean square of each centred target, (F,).
        starts: Weights that the paths start from, (C, p); None for zero.
        tolerance: When to stop.
        max_sweeps: Most sweeps of one problem.

    Returns:
        Weights, sweeps and duality gaps. Where G is singular, the weights depend on where a path started.

    Raises:
        ValueError: If shapes do not fit.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: Friedman, Hastie, Tibshirani 2010, "Regularization Paths for Generalized Linear Models via Coordinate
    Descent"; screening: Ndiaye et al. 2017, arXiv:1611.05780.

    Examples:
        >>> gram, moments = torch.eye(2)[None], torch.tensor([[2.0, 0.5]])
        >>> path, l1 = torch.tensor([0]), torch.tensor([[3.0, 1.0]])
        >>> found = coordinate_descent(gram, moments, path, l1, 0 * l1, torch.tensor([5.0]))
        >>> found.weights
        tensor([[[0., 0.],
                 [1., 0.]]])
    """
    size = gram.shape[-1]
    shapes = [tuple(tensor.shape) for tensor in (gram, moments, target_power, path_gram, l1, l2)]
    if (
        gram.ndim != 3
        or shapes[:3] != [(len(gram), size, size), (len(gram), size), (len(gram),)]
        or l1.ndim != 2
        or shapes[3:] != [(len(l1),), tuple(l1.shape), tuple(l1.shape)]
        or (starts is not None and starts.shape != (len(l1), size))
    ):
        raise ValueError(
            f"gram, moments, target_power, path_gram, l1 and l2 have shapes {', '.join(map(str, shapes))}; allowed are "
            f"(F, p, p), (F, p), (F,), (C,), (C, L) and (C, L), and for starts None or (C, p)"
        )
    alike = [tensor.to(gram) for tensor in (moments, l1, l2, target_power)]
    starts = starts if starts is None else starts.to(gram)
    return PathSolutions(*_op(gram, alike[0], path_gram, *alike[1:], starts, tolerance, max_sweeps))
