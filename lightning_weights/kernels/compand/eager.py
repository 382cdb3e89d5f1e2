"""Companding and its gradients without Triton, in as few passes over the weights as PyTorch allows."""

from __future__ import annotations

import torch
from torch import Tensor


def weights(latent: Tensor, a: Tensor, b: Tensor, function: str) -> Tensor:
    """Return a·f(v / b) in the latents' dtype, computed in that of ``a``."""
    return _unit(latent, b, function).mul_(a.unsqueeze(1)).to(latent.dtype)


def _unit(latent: Tensor, b: Tensor, function: str) -> Tensor:
    width = b.unsqueeze(1)
    if function == "softsign":
        return latent / latent.abs().to(b.dtype).add_(width)
    ratio = latent / width
    return ratio.atan_() if function == "arctan" else ratio.tanh_()


def gradients(
    latent: Tensor, a: Tensor, b: Tensor, upstream: Tensor, function: str, sums: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients to latents, scales and widths; without ``sums`` the last two are zero.

    ψ depends on v and b through v / b alone, so that ∂w/∂b = -(v / b)·∂w/∂v: no function is needed for it.
    """
    wide_latent, wide_upstream = latent.to(a.dtype), upstream.to(a.dtype)
    slope = _slope(wide_latent, a, b, function).mul_(wide_upstream)
    if not sums:
        return slope.to(latent.dtype), torch.zeros_like(a), torch.zeros_like(b)
    grad_a = torch.linalg.vecdot(wide_upstream, _unit(wide_latent, b, function), dim=1)
    grad_b = torch.linalg.vecdot(wide_latent, slope, dim=1).div_(b).neg_()
    return slope.to(latent.dtype), grad_a, grad_b


def _slope(latent: Tensor, a: Tensor, b: Tensor, function: str) -> Tensor:
    width, area = b.unsqueeze(1), (a * b).unsqueeze(1)
    if function == "tanh":
        unit = _unit(latent, b, function)
        return torch.addcmul(unit.new_ones(()), unit, unit, value=-1.0).mul_((a / b).unsqueeze(1))
    if function == "softsign":
        return latent.abs().add_(width).square_().reciprocal_().mul_(area)
    return torch.addcmul(width.square(), latent, latent).reciprocal_().mul_(area)
