"""The policy loss without Triton: rows in cache-sized chunks, loss and gradient in one pass over each."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.kernels.policy_loss.reference import LARGEST_DIVERGENCE

CHUNK = 1 << 15  # tokens per chunk: few enough for their buffers to stay in the cache, enough to hide calls


def loss_and_gradient(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    clip: tuple[float, float, float],
    kl_coef: float,
    k3: bool,
) -> tuple[Tensor, Tensor]:
    """Compute sums over the tokens and the gradient of the first of them.

    Args:
        logp: Log-probabilities, (N, T), as the next two.
        old_logp: Those of the policy that sampled.
        ref_logp: Those of the reference, or None.
        advantages: (N,) or (N, T).
        mask: (N, T), of the type of the result.
        clip: ε below, ε above, and c; an infinite c clips nothing.
        kl_coef: β.
        k3: Whether the divergence is k3, else mse.

    Returns:
        Sums of loss, clipped tokens and divergence, (3,), and the gradient of the loss, (N, T).
    """
    rows, width = logp.shape
    gradient = torch.empty(rows, width, dtype=mask.dtype, device=logp.device)
    sums = torch.zeros(3, dtype=mask.dtype, device=logp.device)
    step = max(1, CHUNK // max(width, 1)) if logp.device.type == "cpu" else max(rows, 1)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        advantage = advantages[part].to(mask.dtype)
        _rows(
            logp[part].to(mask.dtype),
            old_logp[part].to(mask.dtype),
            None if ref_logp is None else ref_logp[part].to(mask.dtype),
            advantage[:, None] if advantage.ndim == 1 else advantage,
            mask[part],
            gradient[part],
            sums,
            (clip, kl_coef, k3),
        )
    return sums, gradient


def _rows(
    logp: Tensor,
    old: Tensor,
    ref: Tensor | None,
    advantage: Tensor,
    mask: Tensor,
    gradient: Tensor,
    sums: Tensor,
    rule: tuple[tuple[float, float, float], float, bool],
) -> None:
    """Fill the gradient of a few rows and add their sums. What is said of a surrogate is of -loss."""
    (low, high, dual), kl_coef, k3 = rule
    invalid = mask == 0
    ratio = torch.sub(logp, old, out=gradient).masked_fill_(invalid, 0.0).exp_()
    clipped = ratio.clamp(1.0 - low, 1.0 + high).mul_(advantage)
    plain = ratio.mul_(advantage)  # in the gradient's memory
    stopped = clipped < plain
    sums[1] += torch.sum(stopped * mask)
    surrogate = torch.minimum(plain, clipped, out=clipped)
    floor = torch.where(advantage < 0, advantage * dual, -torch.inf)
    stopped |= floor > surrogate
    surrogate = torch.maximum(surrogate, floor, out=surrogate)
    sums[0] -= torch.linalg.vecdot(surrogate, mask).sum()
    plain.neg_().masked_fill_(stopped, 0.0)
    if ref is not None:
        delta = torch.sub(ref, logp, out=surrogate).masked_fill_(invalid, 0.0)
        divergence = _divergence(delta, gradient, kl_coef, k3)
        kl = torch.linalg.vecdot(divergence, mask).sum()
        sums[2] += kl
        sums[0] += kl_coef * kl
    gradient.mul_(mask)


def _divergence(delta: Tensor, gradient: Tensor, kl_coef: float, k3: bool) -> Tensor:
    """Return the divergence of log-ratios, and add its gradient to another one."""
    if not k3:
        gradient.sub_(delta, alpha=kl_coef)
        return delta.square().mul_(0.5)
    slope = delta.expm1()
    divergence = slope - delta
    large = divergence > LARGEST_DIVERGENCE
    gradient.sub_(slope.masked_fill_(large, 0.0), alpha=kl_coef)
    return divergence.masked_fill_(large, LARGEST_DIVERGENCE)
