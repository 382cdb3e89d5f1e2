"""The joint loss without Triton: rows in cache-sized chunks, every exponential taken once for value and gradient."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 18  # logits per chunk: few enough for their buffers to be reused in caches, enough to hide calls
LARGE_CHUNK = 1 << 25  # elsewhere: launches count, and buffers are small beside the logits still


def loss_and_gradient(
    logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    temperature: float,
    ce_weight: float,
    kd_weight: float,
    relative: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the mean loss and its gradient; arguments as in the registered operator.

    Returns:
        The loss and the gradient with respect to the logits, both in fp32 or wider.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    rows, classes = logits.shape
    losses = torch.empty(rows, dtype=wide, device=logits.device)
    gradient = torch.empty(rows, classes, dtype=wide, device=logits.device)
    step = max(1, (CHUNK if logits.device.type == "cpu" else LARGE_CHUNK) // classes)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        _rows(
            logits[part].to(wide),
            teacher_logits[part].to(wide),
            targets[part],
            losses[part],
            gradient[part],
            temperature,
            (ce_weight, ce_weight / rows),
            (kd_weight, kd_weight / temperature / rows),
            relative,
        )
    return losses.mean(), gradient


def _rows(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    losses: Tensor,
    gradient: Tensor,
    temperature: float,
    ce: tuple[float, float],
    kd: tuple[float, float],
    relative: bool,
) -> None:
    """Fill the losses and gradients of a few rows; ``ce`` and ``kd`` are the factors of losses and of gradients."""
    known = teacher.shape[1]
    if ce[0] != 0.0:
        torch.softmax(student, dim=1, out=gradient)
        label = targets[:, None]
        losses.copy_((_normalizer(student, gradient) - student.gather(1, label)).squeeze(1)).mul_(ce[0])
        gradient.mul_(ce[1])
        gradient.scatter_add_(1, label, gradient.new_full((1, 1), -ce[1]).expand_as(label))
    else:
        losses.zero_()
        gradient.zero_()
    student, teacher = student[:, :known] / temperature, teacher / temperature
    q, p = torch.softmax(student, dim=1), torch.softmax(teacher, dim=1)
    gradient[:, :known].add_(q, alpha=kd[1]).sub_(p, alpha=kd[1])
    distance = _normalizer(student, q)
    if relative:
        distance -= _normalizer(teacher, p)
        student -= teacher
    matched = torch.mul(p, student, out=q).sum(dim=1)
    if student.device.type != "cpu" or matched.isnan().any():
        matched = q.masked_fill_(p == 0, 0.0).sum(dim=1)  # 0 · log 0 = 0
    losses.add_(distance.squeeze(1) - matched, alpha=kd[0])


def _normalizer(x: Tensor, probabilities: Tensor) -> Tensor:
    """Return log Σ exp of each row from its softmax; that of the largest logit never underflows."""
    return x.amax(dim=1, keepdim=True) - probabilities.amax(dim=1, keepdim=True).log_()
