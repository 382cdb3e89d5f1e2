"""The joint loss as two Triton kernels: rows to losses and statistics, and those to the gradient."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_weights.kernels._aot import Row
from lightning_weights.kernels._op import WARP_SIZE
from lightning_weights.kernels.distillation_loss.cost import pick_config, pick_vector

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
SIZES = ("classes", "known", "student_stride", "teacher_stride")
REGISTERS = 64  # budget of both kernels; lets two programs of 512 threads share a multiprocessor


@triton.jit
def _absorb(largest, total, values):
    """Take more values into a running maximum and Σ exp(value - maximum)."""
    new = tl.maximum(largest, tl.max(values, axis=0))
    return new, total * tl.exp(largest - new) + tl.sum(tl.exp(values - new), axis=0)


@triton.jit
def _absorb_matched(largest, total, matched, teacher, other):
    """The same, and Σ exp(teacher - maximum) · other, where 0 · infinity is 0."""
    new = tl.maximum(largest, tl.max(teacher, axis=0))
    p = tl.exp(teacher - new)
    rescale = tl.exp(largest - new)
    product = tl.where(p == 0.0, 0.0, p * other)
    return new, total * rescale + tl.sum(p, axis=0), matched * rescale + tl.sum(product, axis=0)


@triton.jit(do_not_specialize=["rows", "classes", "known", "student_stride", "teacher_stride"])
def distillation_loss_fwd_kernel(
    student,  # [rows, classes]
    teacher,  # [rows, known]
    targets,  # int64 [rows]
    losses,  # fp32 [rows]
    statistics,  # fp32 [3, rows]: log Σ exp of o over all classes, of o/T and of ô/T over the teacher's
    rows,
    classes,  # this and the next three are counted in vectors
    known,
    student_stride,
    teacher_stride,
    temperature,
    ce_weight,
    kd_weight,
    RELATIVE: tl.constexpr,
    VECTOR: tl.constexpr,  # logits that lie inside a row or outside together: masks don't split the loads of them
    BLOCK: tl.constexpr,
    ONCE: tl.constexpr,  # a row fits into one block
):
    """Compute the loss of one row, all arithmetic in fp32; blocks of a longer row are absorbed one by one.

    Programs share nothing.
    """
    row = tl.program_id(0).to(tl.int64)
    classes *= VECTOR  # a product is all that tells the compiler about divisibility
    known *= VECTOR
    student += row * student_stride * VECTOR
    teacher += row * teacher_stride * VECTOR
    # The most negative number instead of -infinity: a difference of infinities would be NaN.
    o_largest, s_largest, t_largest = -3.4e38, -3.4e38, -3.4e38
    o_total, s_total, t_total, matched = 0.0, 0.0, 0.0, 0.0
    columns = tl.arange(0, BLOCK)
    for start in range(0, BLOCK if ONCE else classes, BLOCK):
        at = start + columns
        is_old = at < known
        o = tl.load(student + at, mask=at < classes, other=-float("inf")).to(tl.float32)
        t = tl.load(teacher + at, mask=is_old, other=-float("inf")).to(tl.float32) / temperature
        s = tl.where(is_old, o, -float("inf")) / temperature
        o_largest, o_total = _absorb(o_largest, o_total, o)
        s_largest, s_total = _absorb(s_largest, s_total, s)
        other = s - t if RELATIVE else s
        t_largest, t_total, matched = _absorb_matched(t_largest, t_total, matched, t, other)
    o_lse, s_lse, t_lse = o_largest + tl.log(o_total), s_largest + tl.log(s_total), t_largest + tl.log(t_total)
    distance = s_lse - matched / t_total
    if RELATIVE:
        distance -= t_lse
    label = tl.load(targets + row)
    at_label = tl.load(student + label, mask=(label >= 0) & (label < classes), other=float("nan")).to(tl.float32)
    tl.store(losses + row, ce_weight * (o_lse - at_label) + kd_weight * distance)
    tl.store(statistics + row, o_lse)
    tl.store(statistics + rows + row, s_lse)
    tl.store(statistics + 2 * rows + row, t_lse)


@triton.jit(do_not_specialize=["rows", "classes", "known", "student_stride", "teacher_stride"])
def distillation_loss_bwd_kernel(
    student,
    teacher,
    targets,
    statistics,
    grad_output,  # fp32 [1]
    gradient,  # [rows, classes]
    rows,
    classes,
    known,
    student_stride,
    teacher_stride,
    temperature,
    ce_weight,
    kd_weight,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradient of one block of one row, all arithmetic in fp32. Programs write disjoint elements."""
    row = tl.program_id(0).to(tl.int64)
    classes *= VECTOR  # a product is all that tells the compiler about divisibility
    known *= VECTOR
    student += row * student_stride * VECTOR
    teacher += row * teacher_stride * VECTOR
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_old = at < known
    o = tl.load(student + at, mask=at < classes, other=-float("inf")).to(tl.float32)
    t = tl.load(teacher + at, mask=is_old, other=-float("inf")).to(tl.float32)
    label = tl.load(targets + row)
    scale = tl.load(grad_output) / rows
    scale = tl.where((label >= 0) & (label < classes), scale, float("nan"))
    cross = tl.exp(o - tl.load(statistics + row)) - tl.where(at == label, 1.0, 0.0)
    q = tl.exp(o / temperature - tl.load(statistics + rows + row))
    p = tl.exp(t / temperature - tl.load(statistics + 2 * rows + row))
    distilled = tl.where(is_old, q - p, 0.0)
    grad = scale * (ce_weight * cross + kd_weight / temperature * distilled)
    tl.store(gradient + row * classes + at, grad.to(gradient.dtype.element_ty), mask=at < classes)


def launch_distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    temperature: float,
    ce_weight: float,
    kd_weight: float,
    relative: bool,
) -> tuple[Tensor, Tensor]:
    """Run the forward kernel; arguments as in the eager version.

    Returns:
        The mean loss, and the statistics of shape (3, N) that the backward kernel needs, both in fp32.
    """
    rows = len(logits)
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    statistics = torch.empty(3, rows, dtype=torch.float32, device=logits.device)
    tensors, sizes, vector = _layout(logits, teacher_logits)
    block, warps = pick_config(logits.shape[1], WARP_SIZE)
    if rows:
        with torch.cuda.device_of(logits):
            distillation_loss_fwd_kernel[(rows,)](
                *tensors,
                targets.contiguous(),
                losses,
                statistics,
                rows,
                *sizes,
                temperature,
                ce_weight,
                kd_weight,
                RELATIVE=relative,
                VECTOR=vector,
                BLOCK=block,
                ONCE=logits.shape[1] <= block,
                num_warps=warps,
            )
    return losses.mean(), statistics


def launch_distillation_loss_backward(
    grad_output: Tensor,
    statistics: Tensor,
    logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    temperature: float,
    ce_weight: float,
    kd_weight: float,
) -> Tensor:
    """Run the backward kernel; returns the gradient, contiguous and in the logits' dtype."""
    rows, classes = logits.shape
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    tensors, sizes, vector = _layout(logits, teacher_logits)
    block, warps = pick_config(classes, WARP_SIZE)
    if rows:
        with torch.cuda.device_of(logits):
            distillation_loss_bwd_kernel[(rows, triton.cdiv(classes, block))](
                *tensors,
                targets.contiguous(),
                statistics.contiguous(),
                grad_output.contiguous(),
                gradient,
                rows,
                *sizes,
                temperature,
                ce_weight,
                kd_weight,
                VECTOR=vector,
                BLOCK=block,
                num_warps=warps,
            )
    return gradient


def _layout(*logits: Tensor) -> tuple[list[Tensor], tuple[int, ...], int]:
    """Return matrices whose rows have no gaps, their sizes in vectors in the order of `SIZES`, and the vector."""
    tensors = [matrix if matrix.stride(1) == 1 else matrix.contiguous() for matrix in logits]
    sizes = (*(matrix.shape[1] for matrix in tensors), *(matrix.stride(0) for matrix in tensors))
    vector = pick_vector(*sizes)
    return tensors, tuple(size // vector for size in sizes), vector


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: rows of one block (fp16 is like bf16), longer rows, odd lengths."""
    fp32, bf16, _ = TRITON_DTYPES
    rows: list[Row] = []
    for dtype, classes, vector, relatives in (
        (fp32, 1000, 8, (False, True)),
        (bf16, 1000, 8, (False,)),
        (fp32, 50_000, 8, (True,)),
        (fp32, 1000, 1, (False,)),
    ):
        block, warps = pick_config(classes, warp_size)
        logits = f"*{TRITON_DTYPES[dtype]}"
        common: dict[str, Any] = {"VECTOR": vector, "BLOCK": block}
        signature = {
            **{"student": logits, "teacher": logits, "targets": "*i64", "statistics": "*fp32", "rows": "i32"},
            **dict.fromkeys(SIZES, "i32"),
            **dict.fromkeys(("temperature", "ce_weight", "kd_weight"), "fp32"),
        }
        moved = block * dtype.itemsize
        shape = f"{signature['student'][1:]} C={classes}" + ("" if vector > 1 else " odd")
        row = partial(Row, num_warps=warps, registers=REGISTERS, even=vector > 1, loads=(moved, moved), fp_fusion=True)
        for relative in relatives:
            name = shape + (" relative" if relative else "")
            constexprs = {**common, "RELATIVE": relative, "ONCE": classes <= block}
            arguments = {**signature, "losses": "*fp32"}
            rows.append(row(name, distillation_loss_fwd_kernel, arguments, constexprs, stores=()))
        arguments = {**signature, "grad_output": "*fp32", "gradient": logits}
        rows.append(row(shape, distillation_loss_bwd_kernel, arguments, common, stores=(moved,)))
    return rows
