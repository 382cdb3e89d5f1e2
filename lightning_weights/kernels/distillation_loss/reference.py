"""Specification of the joint cross-entropy and distillation loss in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def distillation_loss_reference(
    logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    weight: float,
    temperature: float = 2.0,
    kd_scale: float = 1.0,
    relative: bool = False,
) -> Tensor:
    """Compute the loss of [`distillation_loss`][] operation by operation, in fp32 or wider: its specification.

    Args:
        logits: Student's logits o of shape (N, C).
        teacher_logits: Teacher's logits ô of shape (N, C_o) with 1 ≤ C_o ≤ C.
        targets: Labels of shape (N,), from 0 to C-1.
        weight: λ in [0, 1], the weight of the distillation term.
        temperature: T > 0.
        kd_scale: Factor on the distillation term, beside λ.
        relative: Whether the teacher's entropy is subtracted, which makes the term a Kullback-Leibler divergence.

    Returns:
        The mean over the rows, a 0-d tensor.

    Examples:
        >>> student, labels = torch.tensor([[0.0, 0.0, 5.0]]), torch.tensor([2])
        >>> teacher = torch.tensor([[1.0, 1.0]])
        >>> round(distillation_loss_reference(student, teacher, labels, weight=1.0).item(), 4)  # ln 2
        0.6931
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    student, teacher = logits.to(wide), teacher_logits.to(wide)
    log_q = F.log_softmax(student[:, : teacher.shape[1]] / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    p = log_p.exp()
    terms = p * (log_p - log_q) if relative else -p * log_q
    distillation = torch.where(p == 0, 0.0, terms).sum(dim=1).mean()  # 0 · log 0 = 0
    return (1.0 - weight) * F.cross_entropy(student, targets) + weight * kd_scale * distillation
