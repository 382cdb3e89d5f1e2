"""The arithmetic of Adam that optimizers share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_weights.kernels.sparse_adamw import adam_in_place


def step_size(step: int, *, lr: float, betas: tuple[float, float]) -> float:
    r"""Return the learning rate with Adam's bias correction, η √(1 - β₂ᵗ) / (1 - β₁ᵗ).

    Args:
        step: t, 1 for the first step.
        lr: η.
        betas: (β₁, β₂).

    Examples:
        >>> round(step_size(1, lr=1.0, betas=(0.9, 0.99)), 9), step_size(10_000, lr=1.0, betas=(0.9, 0.99))
        (1.0, 1.0)
    """
    return lr * math.sqrt(1.0 - betas[1] ** step) / (1.0 - betas[0] ** step)


@torch.no_grad()
def dense_adamw(
    weight: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
) -> None:
    r"""Take one AdamW step on all entries, in place, with the conventions that the chosen entries follow.

    $$m \leftarrow \beta_1 m + (1 - \beta_1)\,g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\,g^2$$
    $$w \leftarrow (1 - \eta\lambda) \left(w - \eta\,\frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}\,
    \frac{m}{\sqrt v + \varepsilon}\right)$$

    Args:
        weight: w.
        gradient: g, of the shape of the weight.
        first: m, updated in place, in fp32 or wider.
        second: v, updated in place.
        step: t, 1 for the first step.
        lr: η.
        betas: (β₁, β₂).
        eps: ε, added after the root and outside the bias correction, unlike in ``torch.optim.AdamW``.
        weight_decay: λ, decoupled and applied after the update.

    Examples:
        >>> weight, m, v = torch.zeros(2), torch.zeros(2), torch.zeros(2)
        >>> dense_adamw(weight, torch.tensor([1.0, -4.0]), m, v, step=1, lr=0.5, betas=(0.9, 0.95), eps=0.0)
        >>> weight
        tensor([-0.5000,  0.5000])
    """
    wide = weight if weight.dtype == first.dtype else weight.to(first.dtype)
    size = step_size(step, lr=lr, betas=betas)
    adam_in_place(wide, gradient.to(first.dtype), first, second, size, betas[0], betas[1], eps, 1.0 - lr * weight_decay)
    if wide is not weight:
        weight.copy_(wide)
