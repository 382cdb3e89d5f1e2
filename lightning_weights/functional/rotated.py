"""Vectors turned by rotations, with all their digits."""

from __future__ import annotations

from torch import Tensor


def rotated(vectors: Tensor, rotations: Tensor) -> Tensor:
    """Turn vectors, in their own precision whatever autocast or TF32 do to products of matrices.

    Args:
        vectors: Row vectors of shape (..., n).
        rotations: Matrices R of shape (n, n), or (..., n, n) which broadcast, on any device; their transposes turn
            back.

    Returns:
        R x for every vector x, of the shape, data type and device of the vectors.

    Examples:
        >>> import torch
        >>> rotated(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
        tensor([[0., 1.]])
    """
    return (vectors[..., None, :] * rotations.to(vectors)).sum(-1)
