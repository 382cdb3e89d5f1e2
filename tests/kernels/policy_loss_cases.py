"""Data and an independent oracle for tests of the policy loss."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

RULE: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0, "kl_coef": 0.5, "kl": "k3"}
RULES = [RULE, {**RULE, "kl": "mse", "dual_clip": None}, {**RULE, "clip_low": 100.0, "clip_high": 100.0}]


def batch(
    rows: int, width: int, dtype: torch.dtype = torch.float32, per_token: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities of policy, sampler and reference, advantages, and a mask that ends every row somewhere."""
    logp, old, ref = (-3.0 * torch.rand(rows, width) for _ in range(3))
    advantages = torch.randn(rows, width) if per_token else torch.randn(rows)
    mask = (torch.arange(width) <= torch.randint(width, (rows, 1))).float()
    return logp.to(dtype), old.to(dtype), ref.to(dtype), advantages, mask


def oracle(
    logp: Tensor,
    old: Tensor,
    ref: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    kl_coef: float,
    kl: str,
) -> tuple[tuple[float, float, float], np.ndarray]:
    """Loss, share of clipped tokens and divergence, and the gradient, token by token in float64."""
    p, q, m = (x.detach().double().numpy() for x in (logp, old, mask))
    r = None if ref is None else ref.double().numpy()
    a = advantages.double().numpy()
    sums, gradient = np.zeros(3), np.zeros(p.shape)
    for i, t in np.ndindex(*p.shape):
        if m[i, t] == 0:
            continue
        advantage = a[i] if a.ndim == 1 else a[i, t]
        ratio = np.exp(p[i, t] - q[i, t])
        held = min(max(ratio, 1 - clip_low), 1 + clip_high)
        loss, slope = -advantage * ratio, -advantage * ratio
        if -advantage * held > loss:
            loss, slope = -advantage * held, 0.0
            sums[1] += m[i, t]
        if dual_clip is not None and advantage < 0 and loss > -advantage * dual_clip:
            loss, slope = -advantage * dual_clip, 0.0
        if r is not None:
            delta = r[i, t] - p[i, t]
            k = 0.5 * delta**2 if kl == "mse" else np.exp(delta) - delta - 1
            dk = -delta if kl == "mse" else 1 - np.exp(delta)
            k, dk = (10.0, 0.0) if kl == "k3" and k > 10 else (k, dk)
            loss, slope = loss + kl_coef * k, slope + kl_coef * dk
            sums[2] += m[i, t] * k
        sums[0] += m[i, t] * loss
        gradient[i, t] = m[i, t] * slope
    return tuple(sums / m.sum()), gradient / m.sum()


def found(function: Any, data: tuple[Tensor | None, ...], **rule: Any) -> tuple[tuple[float, ...], Tensor]:
    """What a function computes, in the form of the oracle."""
    logp, old, ref, advantages, mask = data
    leaf = logp.detach().requires_grad_()
    results = function(leaf, old, advantages, mask, ref_logp=ref, **rule)
    return tuple(value.item() for value in results), torch.autograd.grad(results[0], leaf)[0]
