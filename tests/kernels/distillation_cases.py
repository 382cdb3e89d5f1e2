"""Data and an independent oracle for tests of the joint loss."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

RULE: dict[str, Any] = {"weight": 0.75, "temperature": 2.0, "kd_scale": 1.0, "relative": False}
RULES = [RULE, {**RULE, "weight": 1.0}, {**RULE, "weight": 0.4, "temperature": 0.7, "kd_scale": 3.0, "relative": True}]


def batch(rows: int, classes: int, known: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, spread over several units, and labels."""
    student, teacher = 3.0 * torch.randn(rows, classes), 3.0 * torch.randn(rows, known)
    return student.to(dtype), teacher.to(dtype), torch.randint(classes, (rows,))


def oracle(
    logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    weight: float,
    temperature: float,
    kd_scale: float,
    relative: bool,
) -> tuple[float, np.ndarray]:
    """Loss and gradient in float64, one row after the other, the gradient by the formula."""
    losses, gradient = [], np.zeros(logits.shape)
    rows, known = teacher_logits.shape
    for i, (o, t) in enumerate(zip(logits.detach().double().numpy(), teacher_logits.double().numpy(), strict=True)):
        y = int(targets[i])
        probability, q, p = _softmax(o), _softmax(o[:known] / temperature), _softmax(t / temperature)
        some = p > 0
        distilled = -np.sum(p[some] * np.log(q[some])) + (np.sum(p[some] * np.log(p[some])) if relative else 0.0)
        losses.append((1 - weight) * -np.log(probability[y]) + weight * kd_scale * distilled)
        gradient[i] = (1 - weight) * probability
        gradient[i, y] -= 1 - weight
        gradient[i, :known] += weight * kd_scale / temperature * (q - p)
    return float(np.mean(losses)), gradient / rows


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def value_and_gradient(function: Any, logits: Tensor, *arguments: Any, **rule: Any) -> tuple[Tensor, Tensor]:
    """Loss, and its gradient with respect to the logits, which keep their strides."""
    leaf = logits.detach().requires_grad_()
    loss = function(leaf, *arguments, **rule)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]
