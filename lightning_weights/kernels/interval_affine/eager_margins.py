"""The margin head without Triton: samples of one label share their rows w_y - w_j, so that each row is built once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_weights.kernels.interval_affine.eager import refuse_reduced_precision
from lightning_weights.kernels.interval_affine.reference import rounding_slack


def margins_forward(
    center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, sound: bool
) -> Tensor:
    """Compute margins (N, K-1); arguments as in [`interval_margins`][]. Grouping waits for the labels' values."""
    lowered = torch.zeros((len(labels), len(weight)), dtype=center.dtype, device=center.device)
    for label, rows in _groups(labels, len(weight)):
        difference = weight[label] - weight
        lowered[rows] = center[rows] @ difference.t()
        lowered[rows] -= radius[rows] @ difference.abs_().t()
    if bias is not None:
        lowered += bias[labels][:, None] - bias
    if sound:
        refuse_reduced_precision()
        terms = (center.abs() + radius) @ weight.abs().t()
        terms = terms if bias is None else terms.add_(bias.abs())
        lowered -= rounding_slack(weight.shape[1]) * (terms.gather(1, labels[:, None]) + terms)
    return lowered.gather(1, other_classes(labels, len(weight)))


def widths_backward(
    full: Tensor, radius: Tensor, weight: Tensor, labels: Tensor, radius_needed: bool, weight_needed: bool
) -> tuple[Tensor, Tensor]:
    """Compute the gradients that flow through |w_y - w_j| r, building each group's rows again.

    Args:
        full: Gradient of the margins (N, K), zero at the true class.
        radius: Input half-widths (N, in).
        weight: W (K, in).
        labels: True classes (N,).
        radius_needed: Whether the radius needs a gradient.
        weight_needed: Whether the weight needs one.

    Returns:
        Gradients of radius and weight, empty where not needed.
    """
    grad_radius = torch.empty_like(radius) if radius_needed else radius.new_empty(0)
    grad_weight = torch.zeros_like(weight) if weight_needed else radius.new_empty(0)
    for label, rows in _groups(labels, len(weight)) if radius_needed or weight_needed else ():
        difference = weight[label] - weight
        if weight_needed:
            pull = (full[rows].t() @ radius[rows]).mul_(difference.sign())
            grad_weight.add_(pull)
            grad_weight[label] -= pull.sum(0)
        if radius_needed:
            grad_radius[rows] = full[rows].neg_() @ difference.abs_()
    return grad_radius, grad_weight


def other_classes(labels: Tensor, classes: int) -> Tensor:
    """Return the classes other than each sample's own, ascending (N, K-1)."""
    column = torch.arange(classes - 1, device=labels.device)
    return column + (column >= labels[:, None])


def _groups(labels: Tensor, classes: int) -> Iterator[tuple[int, Tensor]]:
    """Yield every label that occurs with the samples that have it."""
    for label in labels.unique().tolist():
        if not 0 <= label < classes:
            raise ValueError(f"labels contain {label}; allowed are 0 to {classes - 1}, one per row of weight")
        yield label, (labels == label).nonzero().squeeze(1)
