"""Specification of interval propagation through an affine layer and of margins, in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDINGS = 8  # of one output on top of those of its sum: bias, BatchNorm's affine map and ReLU


class IntervalAffine(NamedTuple):
    """Intervals behind an affine layer, as centres and half-widths.

    Attributes:
        center: Centres behind the ReLU; without one, ``pre_center`` itself.
        radius: Half-widths behind the ReLU; without one, ``pre_radius`` itself.
        pre_center: Centres in front of the ReLU, [c].
        pre_radius: Half-widths in front of the ReLU, [r].
        sums: Over all pre-activations, with the active set A (c - r > 0) and the inactive set I (c + r < 0):
            Σ r, |A|, |I|, Σ_A c, Σ_I c, Σ c, Σ_A c², Σ_I c². The counts have no gradient.

    Examples:
        >>> c, r = torch.tensor([[1.0]]), torch.tensor([[0.5]])
        >>> interval_affine_reference(c, r, torch.tensor([[2.0]])).sums.tolist()
        [1.0, 1.0, 0.0, 2.0, 0.0, 2.0, 4.0, 0.0]
    """

    center: Tensor
    radius: Tensor
    pre_center: Tensor
    pre_radius: Tensor
    sums: Tensor


def rounding_slack(in_features: int) -> float:
    """Bound the relative error of a sum of products in fp32, in whichever order it is taken.

    A sum of n products is off by at most nu / (1 - nu) times the sum of their magnitudes, with the unit roundoff
    u = 2⁻²⁴. That sum is itself computed in fp32; the factor 4 in the denominator covers its error.

    Args:
        in_features: Number of products.

    Returns:
        The factor to multiply |W|(|c| + r) + |b| with; close to ``in_features * 2**-24``.

    Raises:
        ValueError: If the sum is too long for a useful bound.

    Examples:
        >>> rounding_slack(512) * 2**24
        520.06...
    """
    terms = in_features + ROUNDINGS
    if terms > 1 << 20:
        raise ValueError(f"in_features is {in_features}; allowed with sound=True are up to {(1 << 20) - ROUNDINGS}")
    return terms / (2**24 - 4 * terms)


def interval_affine_reference(
    center: Tensor,
    radius: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    sound: bool = False,
) -> IntervalAffine:
    """Propagate intervals through an affine layer, out of place: the specification of the operator.

    The equation is that of [`interval_affine`][]; gradients are autograd's.

    Args:
        center: Centres c (..., in).
        radius: Half-widths r ≥ 0 (..., in).
        weight: W (out, in).
        bias: b (out,).
        scale: Factor a (out,) of the affine map behind the layer.
        shift: Summand s (out,) of that map.
        relu: Whether a ReLU follows.
        sound: Whether half-widths are rounded up.

    Returns:
        Intervals behind and in front of the ReLU, and sums over the pre-activations.

    Examples:
        >>> c, r, w = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, -2.0]])
        >>> out = interval_affine_reference(c, r, w, relu=True)
        >>> out.pre_center.item(), out.pre_radius.item(), out.center.item(), out.radius.item()
        (1.0, 1.5, 1.25, 1.25)
    """
    pre_center = F.linear(center, weight, bias)
    pre_radius = F.linear(radius, weight.abs())
    if sound:
        slack = _magnitudes(center, radius, weight, bias).mul(rounding_slack(weight.shape[1]))
        pre_radius = pre_radius + slack
    if scale is not None and shift is not None:
        pre_center, pre_radius = pre_center * scale + shift, pre_radius * scale.abs()
    if sound:
        pre_radius = pre_radius + 4 * 2**-24 * (pre_center.abs() + pre_radius + (0 if shift is None else shift.abs()))
    lower, upper = pre_center - pre_radius, pre_center + pre_radius
    active, inactive = (lower > 0).to(lower.dtype), (upper < 0).to(lower.dtype)
    squares = pre_center.square()
    terms = (pre_radius, active, inactive, active * pre_center, inactive * pre_center, pre_center)
    sums = torch.stack([term.sum() for term in (*terms, active * squares, inactive * squares)])
    if not relu:
        return IntervalAffine(pre_center, pre_radius, pre_center, pre_radius, sums)
    lower, upper = lower.relu(), upper.relu()
    center, radius = (upper + lower) / 2, (upper - lower) / 2
    if sound:
        radius = radius + 4 * 2**-24 * upper
    return IntervalAffine(center, radius, pre_center, pre_radius, sums)


def interval_margins_reference(
    center: Tensor,
    radius: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    sound: bool = False,
) -> Tensor:
    """Bound the margins of the true class by building every row w_y - w_j: the specification of the operator.

    The equation is that of [`interval_margins`][]; gradients are autograd's.

    Args:
        center: Centres c (N, in).
        radius: Half-widths r ≥ 0 (N, in).
        weight: W (K, in).
        bias: b (K,), or None.
        labels: True classes y (N,), int64.
        sound: Whether margins are rounded down.

    Returns:
        Margins (N, K-1); the classes j ≠ y ascend.

    Examples:
        >>> c, r = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.1, 0.1]])
        >>> interval_margins_reference(c, r, torch.eye(2), None, torch.tensor([0]))
        tensor([[0.8000]])
    """
    classes = torch.arange(len(weight), device=labels.device)
    others = classes.expand(len(labels), -1)[classes != labels[:, None]].view(len(labels), len(weight) - 1)
    rows = weight[labels][:, None] - weight[others]
    margins = (rows * center[:, None]).sum(2) - (rows.abs() * radius[:, None]).sum(2)
    if bias is not None:
        margins = margins + bias[labels][:, None] - bias[others]
    if sound:
        magnitudes = _magnitudes(center, radius, weight, bias)
        pairs = magnitudes.gather(1, labels[:, None]) + magnitudes.gather(1, others)
        margins = margins - rounding_slack(weight.shape[1]) * pairs
    return margins


def _magnitudes(center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Sums of the magnitudes of all terms, |W|(|c| + r) + |b|, a constant for autograd."""
    with torch.no_grad():
        return F.linear(center.abs() + radius, weight.abs(), None if bias is None else bias.abs())
