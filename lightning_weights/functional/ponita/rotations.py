"""Rotations drawn evenly from all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.errors import check_number


def random_rotations(count: int, dim: int = 3, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw rotations, all equally likely.

    Args:
        count: How many.
        dim: Dimension of space, at least 2.
        generator: Where random numbers come from, on the CPU; ``None`` for PyTorch's global generator.

    Returns:
        Matrices of shape (count, dim, dim), float64, which turn row vectors as ``x @ rotation.mT``.

    Raises:
        ValueError: If a number is out of range.

    Source: Mezzadri 2007, arXiv:math-ph/0609050: the orthogonal factors of Gaussian matrices, with a choice of signs.

    Examples:
        >>> rotation = random_rotations(1, 2, generator=torch.Generator().manual_seed(0))[0]
        >>> torch.allclose(rotation @ rotation.mT, torch.eye(2, dtype=torch.float64))
        True
    """
    check_number("count", count, low=0, whole=True)
    check_number("dim", dim, low=2, whole=True)
    factors, triangles = torch.linalg.qr(
        torch.randn(count, dim, dim, dtype=torch.float64, generator=generator, device="cpu")
    )
    signs = triangles.diagonal(dim1=-2, dim2=-1).sign()
    signs[:, 0] *= torch.linalg.det(factors * signs[:, None])  # a reflection turns into a rotation
    rotations: Tensor = factors * signs[:, None]
    return rotations
