"""Specification of the policy loss in plain PyTorch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_weights.errors import check_choice

Divergence = Literal["k3", "mse"]

DIVERGENCES = ("k3", "mse")
LARGEST_DIVERGENCE = 10.0


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: Divergence = "k3") -> Tensor:
    r"""Estimate, token by token, how far a policy has moved from its reference.

    $$k_3 = \min(e^{\delta} - \delta - 1,\ 10), \quad \delta = \log p_{ref} - \log p_\theta, \qquad
    \mathrm{mse} = \tfrac12 \delta^2$$

    Args:
        logp: Log-probabilities of the policy's tokens.
        ref_logp: Those of the reference.
        kind: ``k3``, of low variance and never negative, or ``mse``.

    Returns:
        Estimates of the shape of the log-probabilities.

    Raises:
        ValueError: If the kind is none of them.

    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.

    Examples:
        >>> kl_estimate(torch.tensor([0.0, -1.0]), torch.tensor([0.0, 0.0]), "mse")
        tensor([0.0000, 0.5000])
    """
    check_choice("kl", kind, DIVERGENCES)
    delta = ref_logp - logp
    if kind == "mse":
        return 0.5 * delta.square()
    return (delta.exp() - delta - 1.0).clamp(max=LARGEST_DIVERGENCE)


def policy_loss_reference(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ref_logp: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    kl_coef: float = 0.0,
    kl: Divergence = "k3",
    tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what [`policy_loss`][] computes, operation by operation, in fp32 or wider: its specification.

    Args:
        logp: Log-probabilities under the policy, (N, T).
        old_logp: Those under the policy that sampled.
        advantages: Advantages, (N,) or (N, T).
        mask: 1 for tokens of responses, (N, T).
        ref_logp: Log-probabilities under the reference.
        clip_low: ε below 1.
        clip_high: ε above 1.
        dual_clip: c > 1, or None.
        kl_coef: β.
        kl: Kind of the divergence.
        tokens: Number to divide by; None: the sum of the mask.

    Returns:
        Loss, share of clipped tokens, and mean divergence.

    Examples:
        >>> logp, old = torch.tensor([[0.5, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> loss, clipped, _ = policy_loss_reference(logp, old, torch.tensor([1.0]), torch.ones(1, 2))
        >>> round(loss.item(), 4), clipped.item()  # (1.2 + 1) / 2 instead of (1.65 + 1) / 2
        (-1.1, 0.5)
    """
    wide = torch.promote_types(logp.dtype, torch.float32)
    logp, old, mask = logp.to(wide), old_logp.to(wide), mask.to(wide)
    advantage = advantages.to(wide)
    advantage = advantage[:, None] if advantage.ndim == 1 else advantage
    count = mask.sum() if tokens is None else tokens
    valid = mask != 0
    ratio = torch.where(valid, logp - old, 0.0).exp()
    plain = -advantage * ratio
    clipped = -advantage * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = torch.maximum(plain, clipped)
    if dual_clip is not None:
        loss = torch.where(advantage < 0, torch.minimum(loss, -advantage * dual_clip), loss)
    total = (loss * mask).sum() / count
    share = ((clipped > plain).to(wide) * mask).sum() / count
    divergence = torch.zeros_like(total)
    if ref_logp is not None:
        near = torch.where(valid, ref_logp.to(wide) - logp, 0.0)
        divergence = (kl_estimate(torch.zeros_like(near), near, kl) * mask).sum() / count
        total = total + kl_coef * divergence
    return total, share.detach(), divergence.detach()
