"""The margin head without Triton: samples of one label share their rows w_y - w_j, so that each row is built once."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.kernels.interval_affine.eager import refuse_reduced_precision
from lightning_weights.kernels.interval_affine.reference import rounding_slack


def margins_forward(
    center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, sound: bool
) -> Tensor:
    """Compute margins (N, K-1); arguments as in [`interval_margins`][]. Grouping waits for the labels' values."""
    order, groups = _groups(labels, len(weight))
    centers, radii = center[order], radius[order]
    grouped = centers.new_empty((len(labels), len(weight)))
    for label, rows in groups:
        difference = weight[label] - weight
        torch.mm(centers[rows], difference.t(), out=grouped[rows])
        grouped[rows].addmm_(radii[rows], difference.abs_().t(), alpha=-1)
    lowered = torch.empty_like(grouped).index_copy_(0, order, grouped)
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
    grad_weight = torch.zeros_like(weight) if weight_needed else radius.new_empty(0)
    if not radius_needed and not weight_needed:
        return radius.new_empty(0), grad_weight
    order, groups = _groups(labels, len(weight))
    slopes, radii = full[order], radius[order]
    grouped = torch.empty_like(radii) if radius_needed else radii
    for label, rows in groups:
        difference = weight[label] - weight
        if weight_needed:
            pull = (slopes[rows].t() @ radii[rows]).mul_(difference.sign())
            grad_weight.add_(pull)
            grad_weight[label] -= pull.sum(0)
        if radius_needed:
            torch.mm(slopes[rows], difference.abs_().neg_(), out=grouped[rows])
    grad_radius = torch.empty_like(radii).index_copy_(0, order, grouped) if radius_needed else radius.new_empty(0)
    return grad_radius, grad_weight


def other_classes(labels: Tensor, classes: int) -> Tensor:
    """Return the classes other than each sample's own, ascending (N, K-1)."""
    column = torch.arange(classes - 1, device=labels.device)
    return column + (column >= labels[:, None])


def _groups(labels: Tensor, classes: int) -> tuple[Tensor, list[tuple[int, slice]]]:
    """Return the order that sorts samples by label, and every label that occurs with its stretch of that order."""
    found, counts = labels.unique(return_counts=True)
    groups, start = [], 0
    for label, count in zip(found.tolist(), counts.tolist(), strict=True):
        if not 0 <= label < classes:
            raise ValueError(f"labels contain {label}; allowed are 0 to {classes - 1}, one per row of weight")
        groups.append((label, slice(start, start + count)))
        start += count
    return labels.argsort(stable=True), groups
