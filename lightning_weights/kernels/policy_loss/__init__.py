"""The clipped policy loss with a divergence from a reference, and its gradient, in one pass over the tokens."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_weights.errors import check_choice, check_number
from lightning_weights.kernels._once import differentiable_once
from lightning_weights.kernels._op import register, takes_triton
from lightning_weights.kernels.policy_loss.eager import loss_and_gradient
from lightning_weights.kernels.policy_loss.reference import (
    DIVERGENCES,
    Divergence,
    kl_estimate,
    policy_loss_reference,
)

__all__ = ["DIVERGENCES", "Divergence", "PolicyLoss", "kl_estimate", "policy_loss", "policy_loss_reference"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # log-probabilities of the Triton kernel


class PolicyLoss(NamedTuple):
    """A loss, and what it was made of.

    Attributes:
        loss: 0-d tensor with a gradient to the log-probabilities.
        clip_fraction: Share of the tokens whose ratio the clip holds back, without gradient.
        kl: Mean divergence from the reference, without gradient; 0 if there is none.

    Examples:
        >>> PolicyLoss(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(0.0)).loss
        tensor(1.)
    """

    loss: Tensor
    clip_fraction: Tensor
    kl: Tensor


def _forward(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    tokens: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
    kl_coef: float,
    k3: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (logp, old_logp, ref_logp, advantages, mask, (clip_low, clip_high, dual_clip), kl_coef, k3)
    log_probabilities = [logp, old_logp] if ref_logp is None else [logp, old_logp, ref_logp]
    if takes_triton(logp.device.type, [(log_probabilities, DTYPES), ([mask], DTYPES[:1])]):
        from lightning_weights.kernels.policy_loss.kernel import launch_policy_loss

        sums, gradient = launch_policy_loss(*arguments)
    else:
        sums, gradient = loss_and_gradient(*arguments)
    means = sums / tokens
    return means[0].clone(), means[1:].clone(), gradient.div_(tokens)


def _forward_fake(
    logp: Tensor, old_logp: Tensor, ref_logp: Tensor | None, advantages: Tensor, mask: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return mask.new_empty(()), mask.new_empty(2), mask.new_empty(logp.shape)


def _backward(grad_output: Tensor, gradient: Tensor, like: Tensor) -> Tensor:
    return (gradient * grad_output).to(like.dtype)


def _backward_fake(grad_output: Tensor, gradient: Tensor, like: Tensor) -> Tensor:
    return gradient.new_empty(gradient.shape, dtype=like.dtype)


_forward_op = register(
    "policy_loss",
    "(Tensor logp, Tensor old_logp, Tensor? ref_logp, Tensor advantages, Tensor mask, Tensor tokens, float clip_low, "
    "float clip_high, float dual_clip, float kl_coef, bool k3) -> (Tensor, Tensor, Tensor)",
    implementation=_forward,
    fake=_forward_fake,
)
_backward_op = differentiable_once(
    register(
        "policy_loss_backward",
        "(Tensor grad_output, Tensor gradient, Tensor like) -> Tensor",
        implementation=_backward,
        fake=_backward_fake,
    )
)


class _PolicyLoss(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        logp: Tensor,
        old_logp: Tensor,
        ref_logp: Tensor | None,
        advantages: Tensor,
        mask: Tensor,
        tokens: Tensor,
        options: tuple[float, float, float, float, bool],
    ) -> Any:
        return _forward_op(logp, old_logp, ref_logp, advantages, mask, tokens, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        # the log-probabilities are not needed, but through them second derivatives are refused and not forgotten
        ctx.save_for_backward(output[2], inputs[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return (_backward_op(grad_outputs[0], *ctx.saved_tensors), *(None for _ in range(6)))


def policy_loss(
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
) -> PolicyLoss:
    r"""Return the dual-clip surrogate of PPO with a divergence from a reference policy, as a mean over tokens, fused.

    $$L = \frac{\sum m\,(\ell + \beta k)}{\sum m}, \qquad \rho = e^{\log p - \log p_{old}}, \qquad
    \ell = \max\bigl(-A\rho,\ -A\,\mathrm{clip}(\rho, 1 - \epsilon_l, 1 + \epsilon_h)\bigr), \quad
    \ell \leftarrow \min(\ell, -Ac) \text{ for } A < 0$$

    The arithmetic is in fp32 or wider. What lies where the mask is 0 does not matter, NaN included. Gradients flow to
    ``logp`` alone; they are computed with the loss.

    Args:
        logp: Log-probabilities of the sampled tokens under the policy, (N, T).
        old_logp: Those under the policy that sampled them.
        advantages: A, (N,) for all tokens of a response alike, or (N, T).
        mask: m, 1 for tokens of responses and 0 for others, (N, T).
        ref_logp: Log-probabilities under the reference policy. None: no divergence.
        clip_low: ε_l ≥ 0; 100 clips nothing.
        clip_high: ε_h ≥ 0.
        dual_clip: c > 1, which bounds what a bad token with a large ratio costs. None: no bound.
        kl_coef: β ≥ 0.
        kl: Kind k of the divergence, see [`kl_estimate`][].
        tokens: Number to divide by, as a 0-d tensor, for a part of a batch. None: Σm of this one.

    Returns:
        Loss, share of clipped tokens and mean divergence.

    Raises:
        ValueError: If shapes do not fit, a number is out of range, β is given without a reference, or, on the CPU, the
            mask is empty.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: Schulman et al. 2017, arXiv:1707.06347; Ye et al. 2020, arXiv:1912.09729, for the second clip.

    Examples:
        >>> logp = torch.tensor([[0.5, 0.0]], requires_grad=True)
        >>> found = policy_loss(logp, torch.zeros(1, 2), torch.tensor([1.0]), torch.ones(1, 2))
        >>> found.loss.backward()
        >>> logp.grad, found.clip_fraction
        (tensor([[ 0.0000, -0.5000]]), tensor(0.5000))
    """
    _check_numbers(clip_low, clip_high, dual_clip, kl_coef, kl)
    _check_tensors(logp, old_logp, ref_logp, advantages, mask)
    if kl_coef and ref_logp is None:
        raise ValueError(f"kl_coef is {kl_coef} and ref_logp None; give ref_logp, or kl_coef=0")
    mask = mask.detach().to(torch.promote_types(logp.dtype, torch.float32))
    if tokens is None:
        tokens = mask.sum()
        # elsewhere looking would make the host wait; there the loss is NaN
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling() and float(tokens) == 0.0:
            raise ValueError("mask has no valid token; every batch needs one at least")
    options = (float(clip_low), float(clip_high), math.inf if dual_clip is None else float(dual_clip))
    reference = None if ref_logp is None else ref_logp.detach()
    loss, shares, _ = _PolicyLoss.apply(  # type: ignore[no-untyped-call]
        logp,
        old_logp.detach(),
        reference,
        advantages.detach(),
        mask,
        tokens.detach().to(mask),
        (*options, float(kl_coef), kl == "k3"),
    )
    return PolicyLoss(loss, shares[0], shares[1])


def _check_numbers(clip_low: float, clip_high: float, dual_clip: float | None, kl_coef: float, kl: str) -> None:
    check_number("clip_low", clip_low, low=0.0)
    check_number("clip_high", clip_high, low=0.0)
    check_number("kl_coef", kl_coef, low=0.0)
    check_choice("kl", kl, DIVERGENCES)
    if dual_clip is not None:
        check_number("dual_clip", dual_clip, low=1.0, low_allowed=False)


def _check_tensors(logp: Tensor, old_logp: Tensor, ref_logp: Tensor | None, advantages: Tensor, mask: Tensor) -> None:
    for name, tensor in (("old_logp", old_logp), ("mask", mask), ("ref_logp", ref_logp)):
        if tensor is not None and (logp.ndim != 2 or tensor.shape != logp.shape):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and logp {tuple(logp.shape)}; allowed is (N, T) for both"
            )
    if advantages.shape not in (logp.shape, logp.shape[:1]):
        raise ValueError(
            f"advantages have shape {tuple(advantages.shape)} for log-probabilities {tuple(logp.shape)}; allowed are "
            f"(N,) and (N, T)"
        )
