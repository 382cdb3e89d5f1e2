"""How gradients of tasks and adapters of samples agree, as cosines."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def group_means(vectors: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean vector of every group.

    Args:
        vectors: Vectors (N, d).
        groups: Group of each of them (N,), integers.

    Returns:
        The groups that there are, in order, and their means (groups, d).

    Examples:
        >>> group_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([7, 7, 2]))
        (tensor([2, 7]), tensor([[5.],
                [2.]]))
    """
    present, which = groups.unique(return_inverse=True)
    sums = vectors.new_zeros((len(present), vectors.shape[1])).index_add_(0, which, vectors)
    return present, sums / which.bincount(minlength=len(present))[:, None].to(sums.dtype)


def cosine_matrix(vectors: Tensor) -> Tensor:
    """Return the cosine of every pair of vectors; that of a zero vector is 0.

    Args:
        vectors: Vectors (N, d).

    Returns:
        Cosines (N, N).

    Examples:
        >>> cosine_matrix(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))
        tensor([[ 1., -1.],
                [-1.,  1.]])
    """
    directions = F.normalize(vectors, dim=1)
    return directions @ directions.t()


def centred_similarity(vectors: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return how similar vectors of one group and of different groups are, after their mean is taken off.

    Args:
        vectors: Vectors (N, d), such as the flattened adapters of N samples.
        groups: Group of each of them (N,), integers.

    Returns:
        Mean cosine of the pairs within a group, and of those across groups; NaN where there are none.

    Examples:
        >>> centred_similarity(torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]), torch.tensor([0, 0, 1, 1]))
        (tensor(1.), tensor(-1.))
    """
    cosines = cosine_matrix(vectors - vectors.mean(0))
    same = groups[:, None] == groups[None, :]
    other = ~same
    same = same & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    return cosines[same].mean(), cosines[other].mean()
