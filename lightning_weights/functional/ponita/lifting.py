"""From scalars and vectors of points to functions of orientations, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def lift(scalars: Tensor, vectors: Tensor | None, orientations: Tensor) -> Tensor:
    r"""Turn scalars and vectors into functions of an orientation.

    $$f(o) = (s,\; o \cdot v)$$

    Args:
        scalars: s of shape (N, c_s); c_s may be 0.
        vectors: v of shape (N, c_v, n), or ``None``.
        orientations: A grid (O, n), or one orientation (N, 1, n) for each point.

    Returns:
        f of shape (N, O, c_s + c_v).

    Source: Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> lift(torch.tensor([[7.0]]), torch.tensor([[[1.0, 2.0]]]), torch.eye(2))
        tensor([[[7., 1.],
                 [7., 2.]]])
    """
    count = orientations.shape[-2]
    lifted = scalars[:, None].expand(-1, count, -1)
    if vectors is None:
        return lifted
    # no product of matrices, which TF32 would round
    return torch.cat([lifted, (vectors[:, None] * orientations[..., None, :]).sum(-1)], dim=-1)


def readout(features: Tensor, orientations: Tensor, num_scalars: int) -> tuple[Tensor, Tensor]:
    r"""Turn functions of an orientation into scalars and vectors: means over orientations.

    $$s = \frac{1}{O} \sum_o f_s(o), \qquad v = \frac{1}{O} \sum_o f_v(o)\, o$$

    A vector that was lifted to a regular grid comes back as v / n.

    Args:
        features: f of shape (N, O, c_s + c_v), the scalars first.
        orientations: A grid (O, n), or one orientation (N, 1, n) for each point.
        num_scalars: c_s.

    Returns:
        Scalars (N, c_s) and vectors (N, c_v, n).

    Source: Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> grid = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> lifted = lift(torch.tensor([[7.0]]), torch.tensor([[[1.0, 2.0]]]), grid)
        >>> readout(lifted, grid, num_scalars=1)
        (tensor([[7.]]), tensor([[[0.5000, 1.0000]]]))
    """
    sizes = [num_scalars, features.shape[-1] - num_scalars]
    scalars, vectors = features.split(sizes, dim=-1)
    return scalars.mean(-2), (vectors[..., None] * orientations[..., None, :]).mean(-3)
