"""Finite sets of orientations: equal angles in the plane, and four ways to spread points over the sphere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_weights.errors import check_choice, check_number

STEPS, STEP_SIZE, NOISE = 100, 0.1, 1e-3  # of the relaxation, as in the released code
GOLDEN = (1 + math.sqrt(5)) / 2


def orientation_grid(n: int, dim: int = 3, method: str = "fibonacci", *, seed: int = 0) -> Tensor:
    r"""Spread n unit vectors over the circle or the sphere.

    In the plane they have equal angles 2πk/n, whatever the method. In space:

    - ``fibonacci``: a spiral of equal areas, whose neighbours are one golden angle apart;
    - ``repulsion``: random points which push each other away, 100 steps down the mean of (π / angle)²;
    - ``antipodal``: the same with n/2 points and their opposites;
    - ``platonic``: the 4, 6, 8, 12 or 20 corners of a regular solid, which have that solid's symmetries.

    Where every orientation has its opposite, the second half of the grid are the opposites of the first half, in that
    order: so are ``antipodal`` and ``platonic`` grids but the tetrahedron's, and those of even n in the plane. What two
    points see of each other is then shared, which saves `fiber_conv` half of its kernels.

    Args:
        n: Number of orientations, at least 1.
        dim: 2 or 3.
        method: ``fibonacci``, ``repulsion``, ``antipodal`` or ``platonic``.
        seed: Seed of ``repulsion`` and ``antipodal``, which draw from a generator of its own.

    Returns:
        Unit vectors of shape (n, dim), float64.

    Raises:
        ValueError: If an argument is out of range, no regular solid has n corners, or n is odd for ``antipodal``.

    Source: Bekkers et al. 2024, arXiv:2310.02970, and their code. There the repelling points differ from one process to
    the next, and no step is limited; antipodal and platonic grids are additions.

    Examples:
        >>> orientation_grid(6, method="platonic")[0]
        tensor([1., 0., 0.], dtype=torch.float64)
        >>> orientation_grid(4, dim=2)[1].round(decimals=6).abs()
        tensor([0., 1.], dtype=torch.float64)
    """
    check_number("n", n, low=1, whole=True)
    check_choice("dim", dim, (2, 3))
    check_choice("method", method, ("fibonacci", "repulsion", "antipodal", "platonic"))
    if dim == 2:
        angles = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
        return torch.stack([angles.cos(), angles.sin()], dim=-1)
    if method == "platonic":
        if n not in SOLIDS:
            raise ValueError(
                f"n is {n}; regular solids have {', '.join(map(str, SOLIDS))} corners: take one of them, or "
                f"method='fibonacci'"
            )
        corners = F.normalize(torch.tensor(sorted(SOLIDS[n](), reverse=True), dtype=torch.float64), dim=-1)
        return corners if n == 4 else _with_opposites(corners[: n // 2])
    if method == "antipodal" and n % 2:
        raise ValueError(f"n is {n} for method='antipodal'; allowed are even numbers, since half of them are opposites")
    if method == "fibonacci":
        return _fibonacci(n)
    with torch.device("cpu"):  # where the generator is, also if a network is made with a GPU as the default
        if method == "antipodal":
            return _with_opposites(_repelling(n // 2, seed, opposites=True))
        return _repelling(n, seed, opposites=False)


def _fibonacci(n: int) -> Tensor:
    k = torch.arange(n, dtype=torch.float64)
    theta = torch.remainder(2 * math.pi * GOLDEN * k, 2 * math.pi)
    height = 1 - (2 * k + 1) / n
    width = (1 - height.square()).sqrt()
    return torch.stack([theta.cos() * width, theta.sin() * width, height], dim=-1)


def _with_opposites(points: Tensor) -> Tensor:
    return torch.cat([points, -points])


def _repelling(n: int, seed: int, opposites: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = F.normalize(torch.randn(n, 3, dtype=torch.float64, generator=generator), dim=-1)
    if n == 1:
        return points
    count = 2 * n if opposites else n
    first, second = torch.triu_indices(count, count, 1)
    for step in range(STEPS):
        noise = NOISE * (1 - step / STEPS) * torch.randn(n, 3, dtype=torch.float64, generator=generator)
        with torch.enable_grad():
            moved = F.normalize(points, dim=-1).requires_grad_()
            every = _with_opposites(moved) if opposites else moved
            cosine = (every[first] * every[second]).sum(-1).clamp(-1 + 1e-9, 1 - 1e-9)
            energy = (math.pi / cosine.acos()).square().mean()
            (force,) = torch.autograd.grad(energy, moved)
        # the force between two points that are close has no bound, and would throw them onto others
        force /= force.norm(dim=-1, keepdim=True).clamp(min=1.0)
        points = F.normalize(moved.detach() - STEP_SIZE * force + noise, dim=-1)
    return points


Corners = Sequence[tuple[float, ...]]


def _tetrahedron() -> Corners:
    return [corner for corner in product((1.0, -1.0), repeat=3) if math.prod(corner) > 0]


def _octahedron() -> Corners:
    return [(sign, 0.0, 0.0)[-axis:] + (sign, 0.0, 0.0)[:-axis] for axis in range(3) for sign in (1.0, -1.0)]


def _cube() -> Corners:
    return list(product((1.0, -1.0), repeat=3))


def _icosahedron() -> Corners:
    return [corner for a, b in product((1.0, -1.0), (GOLDEN, -GOLDEN)) for corner in _cyclic(0.0, a, b)]


def _dodecahedron() -> Corners:
    edges = [corner for a, b in product((1 / GOLDEN, -1 / GOLDEN), (GOLDEN, -GOLDEN)) for corner in _cyclic(0.0, a, b)]
    return [*_cube(), *edges]


def _cyclic(x: float, y: float, z: float) -> Corners:
    return [(x, y, z), (y, z, x), (z, x, y)]


SOLIDS: dict[int, Callable[[], Corners]] = {
    4: _tetrahedron,
    6: _octahedron,
    8: _cube,
    12: _icosahedron,
    20: _dodecahedron,
}
