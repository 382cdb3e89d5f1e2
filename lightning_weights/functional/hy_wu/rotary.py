"""Rotary positions on one axis or several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.errors import check_number


def rotary_table(positions: Sequence[Tensor], head_dim: int, theta: float = 10000.0) -> Tensor:
    r"""Return cosines and sines that turn the pairs of a head by the position of each token.

    Every axis gets an equal share of the head, its first one the first pairs. Pair i of an axis with d dimensions is
    turned by

    $$\varphi_i = \theta^{-2i/d} \, p$$

    Args:
        positions: Positions of all tokens, shape (tokens,), once per axis.
        head_dim: Dimensions of a head; every axis has an even number of them.
        theta: Base of the frequencies.

    Returns:
        Cosines and sines, shape (tokens, head_dim / 2, 2), in fp32.

    Raises:
        ValueError: If the head can't be shared out.

    Examples:
        >>> rotary_table([torch.tensor([0, 1])], head_dim=2)
        tensor([[[1.0000, 0.0000]],
        <BLANKLINE>
                [[0.5403, 0.8415]]])
    """
    axes = len(positions)
    check_number("head_dim", head_dim, low=1, whole=True)
    if not axes or head_dim % (2 * axes):
        raise ValueError(f"head_dim is {head_dim} with {axes} axes; allowed is a multiple of {2 * max(axes, 1)}")
    share = head_dim // axes
    device = positions[0].device
    steps = torch.arange(0, share, 2, dtype=torch.float64, device="cpu") / share
    frequencies = (theta**-steps).to(torch.float32).to(device)
    angles = torch.cat([place[:, None].to(torch.float32) * frequencies for place in positions], dim=1)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the pairs (0, 1), (2, 3), ... of every head by the angles of its token, in fp32.

    Args:
        x: Queries or keys (..., tokens, head_dim).
        table: What [`rotary_table`][] returned.

    Returns:
        The turned ones, in the data type of ``x``.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0]])
        >>> rotate(x, torch.tensor([[[0.0, 1.0]]]))  # by a right angle
        tensor([[0., 1.]])
    """
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = table.unbind(-1)
    turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
    return turned.flatten(-2).to(x.dtype)
