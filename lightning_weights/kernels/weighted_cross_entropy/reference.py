"""Specification of the cross-entropy per sample in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def weighted_cross_entropy_reference(
    logits: Tensor,
    labels: Tensor,
    samples: Tensor | None = None,
    num_samples: int | None = None,
    *,
    ignore_index: int = -100,
) -> Tensor:
    """Compute the losses of [`weighted_cross_entropy`][] operation by operation, in fp32 or wider: its specification.

    Args:
        logits: Logits of shape (B, ..., V).
        labels: Labels of shape (B, ...), from 0 to V-1, or ``ignore_index``.
        samples: Which sample each label belongs to, of the labels' shape; ``None``: the first dimension counts them.
        num_samples: How many samples there are, if ``samples`` is given.
        ignore_index: Label of what is not predicted.

    Returns:
        The mean loss of every sample over its labels, 0 for a sample without any.

    Examples:
        >>> logits = torch.tensor([[[0.0, 0.0], [9.0, 9.0]], [[0.0, 0.0], [0.0, 0.0]]])
        >>> weighted_cross_entropy_reference(logits, torch.tensor([[1, 0], [-100, -100]]))
        tensor([0.6931, 0.0000])
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    classes = wide.shape[-1]
    losses = F.cross_entropy(wide.reshape(-1, classes), labels.reshape(-1), ignore_index=ignore_index, reduction="none")
    return token_means(losses.view(labels.shape), labels != ignore_index, samples, num_samples)


def token_means(losses: Tensor, counted: Tensor, samples: Tensor | None, num_samples: int | None) -> Tensor:
    """Average losses of tokens over each sample, always adding in the same order.

    Args:
        losses: One loss per token, 0 where it isn't counted.
        counted: Which tokens count.
        samples: Which sample each token belongs to; ``None``: the first dimension counts them.
        num_samples: How many samples there are, if ``samples`` is given.

    Returns:
        One mean per sample, 0 where nothing counts.
    """
    if samples is None:
        sums, counts = (values.unsqueeze(-1).flatten(1).sum(1) for values in (losses, counted))
    else:
        places = torch.arange(num_samples or 0, device=losses.device)
        member = samples.reshape(1, -1) == places[:, None]
        sums = torch.where(member, losses.reshape(1, -1), 0.0).sum(1)
        counts = (member & counted.reshape(1, -1)).sum(1)
    return sums / counts.clamp(min=1)
