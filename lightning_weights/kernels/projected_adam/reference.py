"""Specification of the projected Adam step in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def projected_adam_reference(
    param: Tensor,
    grad: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step_size: float,
    beta1: float,
    beta2: float,
    eps: float,
    scale: float,
    decay: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute one step for one matrix, out of place: the specification of the operator.

    With R = LᵀDRᵀ, where a projection that is None is left out: m ← β₁m + (1-β₁)R, v ← β₂v + (1-β₂)R²,
    w ← (w - step·κ·L(m / (√v + ε))Rt)·(1 - decay).

    Args:
        param: Weights w, (a, b).
        grad: Gradient D, (a, b).
        left: L, (a, p), or None.
        right: Rt, (p, b), or None.
        exp_avg: First moment m, of R's shape.
        exp_avg_sq: Second moment v, of R's shape.
        step_size: Learning rate with bias correction.
        beta1: β₁.
        beta2: β₂.
        eps: ε, added to the root.
        scale: κ.
        decay: Learning rate times weight decay.

    Returns:
        New weights, first moment and second moment; all arithmetic is in fp32 or wider.

    Examples:
        >>> import torch
        >>> w, m, v = torch.zeros(1, 2), torch.zeros(1, 1), torch.zeros(1, 1)
        >>> rule = dict(step_size=0.1, beta1=0.0, beta2=0.0, eps=0.0, scale=1.0, decay=0.0)
        >>> projected_adam_reference(w, torch.tensor([[2.0, 5.0]]), None, torch.tensor([[1.0, 0.0]]), m, v, **rule)[0]
        tensor([[-0.1000,  0.0000]])
    """
    projected = grad.to(exp_avg.dtype)
    if left is not None:
        projected = left.T @ projected
    if right is not None:
        projected = projected @ right.T
    exp_avg = beta1 * exp_avg + (1.0 - beta1) * projected
    exp_avg_sq = beta2 * exp_avg_sq + (1.0 - beta2) * projected.square()
    update = exp_avg / (exp_avg_sq.sqrt() + eps)
    if left is not None:
        update = left @ update
    if right is not None:
        update = update @ right
    wide = param.to(exp_avg.dtype)
    return ((wide - step_size * scale * update) * (1.0 - decay)).to(param.dtype), exp_avg, exp_avg_sq
