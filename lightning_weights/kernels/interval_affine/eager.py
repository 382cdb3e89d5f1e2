"""Interval propagation without Triton: two products into place, everything behind them in the products' memory."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.kernels.interval_affine.reference import rounding_slack

UNIT_ROUNDOFF = 2.0**-24
Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # of the forward and of the backward operator


def affine_forward(
    center: Tensor,
    radius: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    sound: bool,
) -> Results:
    """Compute intervals and statistics; arguments as in [`interval_affine`][].

    Returns:
        Centres and half-widths of pre-activations, sums, centres and half-widths behind the ReLU (empty without one),
        and Wc + b, which the gradient of ``scale`` needs (empty without one).
    """
    magnitude = weight.abs()
    raw = center @ weight.t() if bias is None else torch.addmm(bias, center, weight.t())
    pre_radius = radius @ magnitude.t()
    if sound:
        refuse_reduced_precision()
        terms = center.abs().add_(radius) @ magnitude.t()
        terms = terms if bias is None else terms.add_(bias.abs())
        pre_radius.add_(terms, alpha=rounding_slack(weight.shape[1]))
    pre_center = raw
    if scale is not None and shift is not None:
        pre_center = torch.addcmul(shift, raw, scale)
        pre_radius.mul_(scale.abs())
    if sound:
        terms = pre_center.abs().add_(pre_radius)
        pre_radius.add_(terms if shift is None else terms.add_(shift.abs()), alpha=4 * UNIT_ROUNDOFF)
    lower, upper = pre_center - pre_radius, pre_center + pre_radius
    scratch = torch.empty_like(lower)
    sums = _statistics(pre_center, pre_radius, lower, upper, scratch)
    raw = center.new_empty(0) if scale is None else raw
    if not relu:
        return pre_center, pre_radius, sums, center.new_empty(0), center.new_empty(0), raw
    lower.clamp_min_(0)
    upper.clamp_min_(0)
    half_width = torch.sub(upper, lower, out=scratch).mul_(0.5)
    if sound:
        half_width.add_(upper, alpha=4 * UNIT_ROUNDOFF)
    return pre_center, pre_radius, sums, lower.add_(upper).mul_(0.5), half_width, raw


def _statistics(center: Tensor, radius: Tensor, lower: Tensor, upper: Tensor, scratch: Tensor) -> Tensor:
    counts, totals, squares = [], [], []
    for compare, end in ((torch.gt, lower), (torch.lt, upper)):
        # A comparison that writes numbers makes a mask that can be multiplied in place.
        counts.append(compare(end, 0, out=scratch).sum())
        totals.append(scratch.mul_(center).sum())
        squares.append(scratch.square_().sum())
    return torch.stack([radius.sum(), *counts, *totals, center.sum(), *squares])


def refuse_reduced_precision() -> None:
    """Raise if fp32 products may be computed in a narrower type, since a certificate would then not hold."""
    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        raise ValueError(
            f"torch.get_float32_matmul_precision() is {precision!r}; sound=True needs products in full fp32: call "
            f"torch.set_float32_matmul_precision('highest')"
        )


def epilogue_backward(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    pre_center: Tensor,
    pre_radius: Tensor,
) -> tuple[Tensor, Tensor]:
    """Collect the gradients of pre-activation centres and half-widths.

    Args:
        grads: Gradients of pre-activation centres and half-widths, of the sums, and of centres and half-widths behind
            the ReLU; None where nothing flows.
        pre_center: c, in front of the ReLU.
        pre_radius: r, in front of the ReLU.

    Returns:
        Gradients of c and r, in memory of their own.
    """
    grad_pre_center, grad_pre_radius, grad_sums, grad_center, grad_radius = grads
    grad_c = torch.zeros_like(pre_center) if grad_pre_center is None else grad_pre_center.clone()
    grad_r = torch.zeros_like(pre_radius) if grad_pre_radius is None else grad_pre_radius.clone()
    lower, upper = pre_center - pre_radius, pre_center + pre_radius
    scratch = torch.empty_like(lower)
    if grad_sums is not None:
        grad_r.add_(grad_sums[0])
        grad_c.add_(grad_sums[5])
        for index, (compare, end) in enumerate(((torch.gt, lower), (torch.lt, upper))):
            grad_c.addcmul_(compare(end, 0, out=scratch), grad_sums[3 + index])
            grad_c.addcmul_(scratch.mul_(pre_center), grad_sums[6 + index], value=2)
    # An end point above zero passes its gradient on: centre and half-width get the sum and difference of both ends.
    both, one = torch.add(lower.gt_(0), upper.gt_(0), out=scratch), upper.sub_(lower)
    if grad_center is not None:
        grad_c.addcmul_(grad_center, both, value=0.5)
        grad_r.addcmul_(grad_center, one, value=0.5)
    if grad_radius is not None:
        grad_c.addcmul_(grad_radius, one, value=0.5)
        grad_r.addcmul_(grad_radius, both, value=0.5)
    return grad_c, grad_r


def scale_backward(
    grad_c: Tensor, grad_r: Tensor, scale: Tensor | None, raw: Tensor, pre_radius: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry gradients through the affine map, in place.

    Args:
        grad_c: Gradient of pre-activation centres; becomes that of Wc + b.
        grad_r: Gradient of pre-activation half-widths; becomes that of |W|r.
        scale: Factor a, or None.
        raw: Wc + b, empty without a scale.
        pre_radius: |a|·|W|r.

    Returns:
        Gradients of bias, scale (empty without one) and shift.
    """
    grad_shift = grad_c.sum(0)
    if scale is None:
        return grad_shift, grad_c.new_empty(0), grad_shift
    # |a| has the slope sign(a), and |W|r is the half-width over |a|; where a is 0, the slope is, too.
    by_radius = torch.where(scale == 0, 0, (grad_r * pre_radius).sum(0) / scale)
    grad_scale = (grad_c * raw).sum(0).add_(by_radius)
    grad_c.mul_(scale)
    grad_r.mul_(scale.abs())
    return grad_shift * scale, grad_scale, grad_shift


def product_backward(
    grad_c: Tensor, grad_r: Tensor, center: Tensor, radius: Tensor, weight: Tensor, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry gradients through the two products, by products that vendor libraries do best.

    Args:
        grad_c: Gradient of Wc + b (N, out).
        grad_r: Gradient of |W|r (N, out).
        center: Input centres (N, in).
        radius: Input half-widths (N, in).
        weight: W (out, in).
        needed: Which of centre, radius and weight need a gradient.

    Returns:
        Gradients in that order, empty where not needed.
    """
    grad_center, grad_radius, grad_weight = (grad_c.new_empty(0) for _ in range(3))
    if needed[0]:
        grad_center = grad_c @ weight
    scratch = torch.empty_like(weight) if needed[1] or needed[2] else weight
    if needed[1]:
        grad_radius = grad_r @ torch.abs(weight, out=scratch)
    if needed[2]:
        grad_weight = (grad_r.t() @ radius).mul_(torch.sign(weight, out=scratch)).addmm_(grad_c.t(), center)
    return grad_center, grad_radius, grad_weight
