"""Cross-entropy of rows as two Triton kernels: logits to losses and normalisers, and those to the gradient."""

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
from lightning_weights.kernels.weighted_cross_entropy.cost import pick_config

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
SIZES = ("classes", "stride")
REGISTERS = 64  # budget of both kernels; lets two programs of 512 threads share a multiprocessor


@triton.jit(do_not_specialize=["classes", "stride", "ignore_index"])
def weighted_cross_entropy_fwd_kernel(
    logits,  # [rows, classes]
    labels,  # int64 [rows]
    losses,  # fp32 [rows]
    normalizers,  # fp32 [rows]: log Σ exp of a row
    classes,  # this and the next are counted in vectors
    stride,
    ignore_index,
    VECTOR: tl.constexpr,  # logits that lie inside a row or outside together: masks don't split the loads of them
    BLOCK: tl.constexpr,
):
    """Absorb the blocks of one row one by one, all arithmetic in fp32; of an ignored row nothing is read.

    Programs share nothing.
    """
    row = tl.program_id(0).to(tl.int64)
    classes *= VECTOR  # a product is all that tells the compiler about divisibility
    logits += row * stride * VECTOR
    label = tl.load(labels + row)
    counts = label != ignore_index
    # The most negative number instead of -infinity: a difference of infinities would be NaN.
    largest, total = -3.4e38, 0.0
    columns = tl.arange(0, BLOCK)
    for start in range(0, tl.where(counts, classes, 0), BLOCK):
        at = start + columns
        x = tl.load(logits + at, mask=at < classes, other=-float("inf")).to(tl.float32)
        new = tl.maximum(largest, tl.max(x, axis=0))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(x - new), axis=0)
        largest = new
    normalizer = largest + tl.log(tl.where(counts, total, 1.0))
    inside = (label >= 0) & (label < classes)
    at_label = tl.load(logits + label, mask=counts & inside, other=float("nan")).to(tl.float32)
    tl.store(losses + row, tl.where(counts, normalizer - at_label, 0.0))
    tl.store(normalizers + row, tl.where(counts, normalizer, 0.0))


@triton.jit(do_not_specialize=["classes", "stride", "ignore_index"])
def weighted_cross_entropy_bwd_kernel(
    upstream,  # fp32 [rows]
    normalizers,
    logits,
    labels,
    gradient,  # [rows, classes]
    classes,
    stride,
    ignore_index,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradient of one block of one row, all arithmetic in fp32. Programs write disjoint elements."""
    row = tl.program_id(0).to(tl.int64)
    classes *= VECTOR  # a product is all that tells the compiler about divisibility
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    label = tl.load(labels + row)
    counts = label != ignore_index
    read = at < tl.where(counts, classes, 0)  # of an ignored row nothing is read
    x = tl.load(logits + row * stride * VECTOR + at, mask=read, other=-float("inf")).to(tl.float32)
    scale = tl.load(upstream + row)
    scale = tl.where((label >= 0) & (label < classes), scale, float("nan"))
    grad = scale * (tl.exp(x - tl.load(normalizers + row)) - tl.where(at == label, 1.0, 0.0))
    grad = tl.where(counts, grad, 0.0)
    tl.store(gradient + row * classes + at, grad.to(gradient.dtype.element_ty), mask=at < classes)


def launch_row_losses(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Run the forward kernel; arguments and results as of `row_losses`."""
    rows, classes = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    normalizers = torch.empty_like(losses)
    matrix, sizes, vector = _layout(logits)
    block, warps = pick_config(classes, WARP_SIZE)
    if rows:
        with torch.cuda.device_of(logits):
            weighted_cross_entropy_fwd_kernel[(rows,)](
                matrix,
                labels.contiguous(),
                losses,
                normalizers,
                *sizes,
                ignore_index,
                VECTOR=vector,
                BLOCK=block,
                num_warps=warps,
            )
    return losses, normalizers


def launch_row_gradients(
    upstream: Tensor, normalizers: Tensor, logits: Tensor, labels: Tensor, ignore_index: int, gradient: Tensor
) -> Tensor:
    """Run the backward kernel; arguments and result as of `row_gradients`, the gradient contiguous."""
    rows, classes = logits.shape
    matrix, sizes, vector = _layout(logits)
    block, warps = pick_config(classes, WARP_SIZE)
    if rows:
        with torch.cuda.device_of(logits):
            weighted_cross_entropy_bwd_kernel[(rows, triton.cdiv(classes, block))](
                upstream.float().contiguous(),
                normalizers.contiguous(),
                matrix,
                labels.contiguous(),
                gradient,
                *sizes,
                ignore_index,
                VECTOR=vector,
                BLOCK=block,
                num_warps=warps,
            )
    return gradient


def _layout(logits: Tensor) -> tuple[Tensor, tuple[int, int], int]:
    """Return the logits with rows without gaps, their sizes in vectors in the order of `SIZES`, and the vector."""
    matrix = logits if logits.stride(1) == 1 else logits.contiguous()
    classes, stride = matrix.shape[1], matrix.stride(0)
    # masks and addresses are constant over that many elements, so that they move together
    vector = next(size for size in (8, 4, 2, 1) if classes % size == 0 and stride % size == 0)
    return matrix, (classes // vector, stride // vector), vector


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: a large vocabulary in two dtypes, and rows of odd length."""
    fp32, bf16, _ = TRITON_DTYPES
    rows: list[Row] = []
    for dtype, classes, vector in ((bf16, 49_152, 8), (fp32, 49_152, 8), (fp32, 1001, 1)):
        block, warps = pick_config(classes, warp_size)
        kind = f"*{TRITON_DTYPES[dtype]}"
        constexprs: dict[str, Any] = {"VECTOR": vector, "BLOCK": block}
        signature = {"logits": kind, "labels": "*i64", "normalizers": "*fp32", **dict.fromkeys(SIZES, "i32")}
        signature["ignore_index"] = "i32"
        moved = block * dtype.itemsize
        row = partial(
            Row,
            f"{kind[1:]} V={classes}",
            constexprs=constexprs,
            num_warps=warps,
            registers=REGISTERS,
            even=vector > 1,
            loads=(moved,),
            fp_fusion=True,
        )
        rows.append(row(weighted_cross_entropy_fwd_kernel, {**signature, "losses": "*fp32"}, stores=()))
        arguments = {**signature, "upstream": "*fp32", "gradient": kind}
        rows.append(row(weighted_cross_entropy_bwd_kernel, arguments, stores=(moved,)))
    return rows
