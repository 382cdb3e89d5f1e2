"""Specification of the Gram matrix of gradients in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradient_gram_reference(gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    """Concatenate every objective's gradient and multiply the matrix of them with itself, in fp64.

    Args:
        gradients: K lists of tensors, of the same shapes in all of them.

    Returns:
        Inner products, (K, K).

    Examples:
        >>> gradient_gram_reference([[torch.tensor([3.0, 0.0])], [torch.tensor([1.0, 2.0])]])
        tensor([[9., 3.],
                [3., 5.]], dtype=torch.float64)
    """
    rows = torch.stack([torch.cat([part.detach().double().reshape(-1) for part in row]) for row in gradients])
    return rows @ rows.T
