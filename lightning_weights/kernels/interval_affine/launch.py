"""Launches of the Triton kernels."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from lightning_weights.kernels._op import WARP_SIZE, exact_products
from lightning_weights.kernels.interval_affine.affine_kernels import (
    interval_affine_bwd_kernel,
    interval_affine_fwd_kernel,
)
from lightning_weights.kernels.interval_affine.cost import STAGES, backward_tiles, margin_tiles, pick_config
from lightning_weights.kernels.interval_affine.eager import Results
from lightning_weights.kernels.interval_affine.margin_kernels import (
    interval_margins_bwd_classes_kernel,
    interval_margins_bwd_rows_kernel,
    interval_margins_fwd_kernel,
)
from lightning_weights.kernels.interval_affine.reference import rounding_slack


def launch_affine(
    center: Tensor,
    radius: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    sound: bool,
) -> Results:
    """Run the forward kernel; arguments and results as in [`affine_forward`][]."""
    center, radius, weight = center.contiguous(), radius.contiguous(), weight.contiguous()
    (rows, inner), columns = center.shape, weight.shape[0]
    tiles, even = pick_config(inner, columns, WARP_SIZE)
    shape, grid = (rows, columns), (triton.cdiv(rows, tiles.rows), triton.cdiv(columns, tiles.columns))
    pre_center, pre_radius = center.new_empty(shape), center.new_empty(shape)
    behind_center, behind_radius = (center.new_empty(shape if relu else 0) for _ in range(2))
    raw, partial = center.new_empty(0 if scale is None else shape), center.new_empty((grid[0] * grid[1], 8))
    # TF32 where PyTorch may use it for its own products, never for certificates.
    precision = "ieee" if sound or exact_products(torch.float32) else "tf32"
    if partial.numel():
        with torch.cuda.device_of(center):
            interval_affine_fwd_kernel[grid](
                center,
                radius,
                weight,
                *(center if vector is None else vector.contiguous() for vector in (bias, scale, shift)),
                pre_center,
                pre_radius,
                raw,
                behind_center,
                behind_radius,
                partial,
                rows,
                columns,
                inner,
                rounding_slack(inner) if sound else 0.0,
                BIAS=bias is not None,
                AFFINE=scale is not None,
                RELU=relu,
                SOUND=sound,
                EVEN=even,
                PRECISION=precision,
                BLOCK_ROWS=tiles.rows,
                BLOCK_COLUMNS=tiles.columns,
                BLOCK_INNER=tiles.inner,
                num_warps=tiles.warps,
                num_stages=STAGES,
                enable_fp_fusion=True,
            )
    return pre_center, pre_radius, partial.sum(0), behind_center, behind_radius, raw


def launch_epilogue_backward(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    pre_center: Tensor,
    pre_radius: Tensor,
    scale: Tensor | None,
    raw: Tensor,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Run the backward kernel: [`epilogue_backward`][] and [`scale_backward`][] in one pass.

    Returns:
        Gradients of Wc + b and of |W|r, and those of bias, scale (empty without one) and shift.
    """
    grad_pre_center, grad_pre_radius, grad_sums, grad_center, grad_radius = grads
    (rows, columns), tiles = pre_center.shape, backward_tiles(WARP_SIZE)
    grid = (triton.cdiv(rows, tiles.rows), triton.cdiv(columns, tiles.columns))
    grad_c, grad_r = torch.empty_like(pre_center), torch.empty_like(pre_center)
    partial = pre_center.new_empty((1 if scale is None else 3, grid[0], columns))
    tensors = (grad_pre_center, grad_pre_radius, grad_center, grad_radius)
    if grad_c.numel():
        with torch.cuda.device_of(pre_center):
            interval_affine_bwd_kernel[grid](
                *(pre_center if tensor is None else tensor.contiguous() for tensor in tensors),
                pre_center,
                pre_radius,
                raw,
                grad_c,
                grad_r,
                pre_center if grad_sums is None else grad_sums.contiguous(),
                pre_center if scale is None else scale.contiguous(),
                partial,
                rows,
                columns,
                PRE_CENTER=grad_pre_center is not None,
                PRE_RADIUS=grad_pre_radius is not None,
                SUMS=grad_sums is not None,
                CENTER=grad_center is not None,
                RADIUS=grad_radius is not None,
                AFFINE=scale is not None,
                EVEN=columns % tiles.columns == 0,
                BLOCK_ROWS=tiles.rows,
                BLOCK_COLUMNS=tiles.columns,
                num_warps=tiles.warps,
                enable_fp_fusion=True,
            )
    totals = partial.sum(1)
    if scale is None:
        return grad_c, grad_r, (totals[0], pre_center.new_empty(0), totals[0])
    grad_scale = totals[1] + torch.where(scale == 0, 0, totals[2] / scale)
    return grad_c, grad_r, (totals[0] * scale, grad_scale, totals[0])


def launch_margins(
    center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, sound: bool
) -> Tensor:
    """Run the forward kernel of the margin head; arguments as in [`interval_margins`][]."""
    (samples, inner), classes = center.shape, len(weight)
    options, margins = _margin_options(inner), center.new_empty((samples, classes - 1))
    grid = (triton.cdiv(samples, options["BLOCK_SAMPLES"]), triton.cdiv(classes, options["BLOCK_CLASSES"]))
    if margins.numel():
        with torch.cuda.device_of(center):
            interval_margins_fwd_kernel[grid](
                center.contiguous(),
                radius.contiguous(),
                weight.contiguous(),
                center if bias is None else bias.contiguous(),
                labels.contiguous(),
                margins,
                samples,
                classes,
                inner,
                rounding_slack(inner) if sound else 0.0,
                BIAS=bias is not None,
                SOUND=sound,
                **options,
            )
    return margins


def launch_margins_backward(
    full: Tensor, radius: Tensor, weight: Tensor, labels: Tensor, radius_needed: bool, weight_needed: bool
) -> tuple[Tensor, Tensor]:
    """Run the backward kernels of the margin head; arguments and results as in [`widths_backward`][]."""
    radius, weight, labels = radius.contiguous(), weight.contiguous(), labels.contiguous()
    (samples, inner), classes = radius.shape, len(weight)
    grad_radius, grad_own, grad_weight = torch.empty_like(radius), torch.empty_like(radius), torch.zeros_like(weight)
    options, sizes = _margin_options(inner), (samples, classes, inner)
    over_samples, over_classes, over_inner = (
        triton.cdiv(size, options[f"BLOCK_{name}"])
        for size, name in zip(sizes, ("SAMPLES", "CLASSES", "INNER"), strict=True)
    )
    if full.numel() and inner:
        with torch.cuda.device_of(radius):
            interval_margins_bwd_rows_kernel[over_samples, over_inner](
                full, radius, weight, labels, grad_radius, grad_own, *sizes, **options
            )
            if weight_needed:
                interval_margins_bwd_classes_kernel[over_classes, over_inner](
                    full, radius, weight, labels, grad_weight, *sizes, **options
                )
                # A product with the labels' indicators adds up in one order; index_add_ on GPUs does not.
                classes_of = torch.arange(classes, device=labels.device)
                grad_weight.addmm_((classes_of[:, None] == labels).to(grad_own.dtype), grad_own)
    return grad_radius if radius_needed else radius.new_empty(0), grad_weight if weight_needed else radius.new_empty(0)


def _margin_options(inner: int) -> dict[str, int]:
    tiles, even = margin_tiles(inner, WARP_SIZE)
    return {
        "EVEN": even,
        "BLOCK_SAMPLES": tiles.rows,
        "BLOCK_CLASSES": tiles.columns,
        "BLOCK_INNER": tiles.inner,
        "num_warps": tiles.warps,
        "enable_fp_fusion": True,
    }
