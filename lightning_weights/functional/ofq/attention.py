"""The matrix between queries and keys, which is quantized in one piece."""

from __future__ import annotations

import torch
from torch import Tensor


def score_matrix(q_weight: Tensor, k_weight: Tensor, heads: int) -> Tensor:
    r"""Return the product of query and key projection of every head, stacked.

    $$M^h = (W_q^h)^\top W_k^h$$

    Args:
        q_weight: W_q of shape (heads · d, C).
        k_weight: W_k of the same shape.
        heads: Number of heads.

    Returns:
        M of shape (heads · C, C); scores of a head are X·M^h·Xᵀ.

    Raises:
        ValueError: If the shapes differ, or the rows are not a multiple of the heads.

    Source: Liu, Liu & Cheng 2023, arXiv:2302.02210.

    Examples:
        >>> score_matrix(torch.eye(4), torch.eye(4), heads=2).shape
        torch.Size([8, 4])
    """
    if q_weight.dim() != 2 or q_weight.shape != k_weight.shape or len(q_weight) % heads:
        raise ValueError(
            f"q_weight has shape {tuple(q_weight.shape)} and k_weight {tuple(k_weight.shape)} for {heads} heads; "
            f"allowed are equal shapes (heads · d, C): grouped key heads have no product of this kind"
        )
    columns = q_weight.shape[1]
    q, k = (weight.view(heads, -1, columns) for weight in (q_weight, k_weight))
    with torch.autocast(q_weight.device.type, enabled=False):  # rounded, it would jump over thresholds
        return torch.bmm(q.transpose(1, 2), k).view(heads * columns, columns)


def key_bias(q_bias: Tensor, k_weight: Tensor, heads: int) -> Tensor:
    r"""Return what the bias of the queries adds to the score of a key, as one vector per head.

    $$r^h = (W_k^h)^\top b_q^h$$

    Args:
        q_bias: b_q of shape (heads · d,).
        k_weight: W_k of shape (heads · d, C).
        heads: Number of heads.

    Returns:
        r of shape (heads, C); a key x gets r^h·x. The bias of the keys adds the same to all keys, which the softmax
        removes.

    Examples:
        >>> key_bias(torch.tensor([1.0, 2.0]), torch.eye(2), heads=2)
        tensor([[1., 0.],
                [0., 2.]])
    """
    bias, k = q_bias.to(k_weight.dtype).view(heads, 1, -1), k_weight.view(heads, -1, k_weight.shape[1])
    with torch.autocast(k_weight.device.type, enabled=False):
        return torch.bmm(bias, k).squeeze(1)


def movable_factors(movable: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Tell which columns of query and key projection reach a movable element of their product.

    Args:
        movable: Mask of the product's shape (heads · C, C).
        heads: Number of heads.

    Returns:
        Masks of shape (heads, C) for the columns of W_q^h and of W_k^h: with all elements that a column reaches frozen,
        it has no gradient.

    Examples:
        >>> movable_factors(torch.tensor([[True, False], [False, False]]), heads=1)
        (tensor([[ True, False]]), tensor([[ True, False]]))
    """
    blocks = movable.view(heads, -1, movable.shape[1])
    return blocks.any(2), blocks.any(1)
