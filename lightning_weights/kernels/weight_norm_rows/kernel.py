"""The row norms as a Triton kernel: one program for a few rows, which reads them once."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_weights.kernels._aot import TARGETS, Row
from lightning_weights.kernels._op import WARP_SIZE
from lightning_weights.kernels.weight_norm_rows.cost import STAGES, Tiles, pick_config
from lightning_weights.kernels.weight_norm_rows.reference import SMALLEST_NORM

TRITON_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
REGISTERS = 128  # budget; lets four programs of 128 threads share a multiprocessor


@triton.jit
def weight_norm_rows_fwd_kernel(
    weight,  # [rows, columns], contiguous
    factor_i,  # fp32 [rows, rank], as are all that follow, of their shapes
    factor_j,  # [rank, columns]
    turned,  # [rows, rank]: factor_i times the products of factor_j with itself
    square,  # [rows]: squared norms of the weight's rows, if KNOWN
    norms,  # [rows]
    product,  # [rows, rank]
    rows,
    columns,
    rank,
    scale,
    floor,
    KNOWN: tl.constexpr,
    EVEN: tl.constexpr,  # tiles and rank end where the tensors do: without masks, loads are 128 bits wide
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    """Reduce a few rows to their norms, see [`weight_norm_rows_reference`][]; all arithmetic in fp32."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    direction, within = tl.arange(0, RANK), tl.arange(0, COLUMNS)
    row_inside, direction_inside = row < rows, direction < rank
    total = tl.zeros([ROWS, RANK], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for start in range(0, columns, COLUMNS):
        column = start + within
        w_at = weight + row[:, None] * columns + column[None, :]
        j_at = factor_j + direction.to(tl.int64)[:, None] * columns + column[None, :]
        if EVEN:
            w = tl.load(w_at).to(tl.float32)
            j = tl.load(j_at)
        else:
            last = (column < columns)[None, :]
            w = tl.load(w_at, mask=row_inside[:, None] & last, other=0.0).to(tl.float32)
            j = tl.load(j_at, mask=direction_inside[:, None] & last, other=0.0)
        total = tl.dot(w, tl.trans(j), total, input_precision="ieee")
        if not KNOWN:
            squares += tl.sum(w * w, axis=1)
    at = row[:, None] * rank + direction[None, :]
    inside = None if EVEN else row_inside[:, None] & direction_inside[None, :]
    i = tl.load(factor_i + at, mask=inside, other=None if EVEN else 0.0)
    inner = 2.0 * total + scale * tl.load(turned + at, mask=inside, other=None if EVEN else 0.0)
    if KNOWN:
        squares = tl.load(square + row, mask=None if EVEN else row_inside)
    squares += scale * tl.sum(inner * i, axis=1)
    squares = tl.maximum(squares, floor, propagate_nan=tl.PropagateNan.ALL)
    tl.store(norms + row, tl.sqrt_rn(squares), mask=None if EVEN else row_inside)
    tl.store(product + at, total, mask=inside)


def launch_norms(
    weight: Tensor, factor_i: Tensor, factor_j: Tensor, weight_norm_sq: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Run the kernel; arguments and results as those of the eager `norms`."""
    weight, factor_i, factor_j = weight.contiguous(), factor_i.contiguous(), factor_j.contiguous()
    (rows, columns), rank = weight.shape, len(factor_j)
    norms, product = factor_i.new_empty(rows), factor_i.new_empty((rows, rank))
    tiles, even = pick_config(rows, columns, rank, WARP_SIZE)
    if rows:
        with torch.cuda.device_of(weight):
            weight_norm_rows_fwd_kernel[(triton.cdiv(rows, tiles.rows),)](
                weight,
                factor_i,
                factor_j,
                factor_i @ (factor_j @ factor_j.T),
                norms if weight_norm_sq is None else weight_norm_sq.contiguous(),
                norms,
                product,
                rows,
                columns,
                rank,
                scale,
                SMALLEST_NORM**2,
                KNOWN=weight_norm_sq is not None,
                EVEN=even,
                **_shape(tiles),
                num_warps=tiles.warps,
                num_stages=STAGES,
            )
    return norms, product


def _shape(tiles: Tiles) -> dict[str, int]:
    return {"ROWS": tiles.rows, "COLUMNS": tiles.columns, "RANK": tiles.rank}


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: both widths of weights, a large rank whose norms are not known, and tails."""
    return [
        _row(warp_size, torch.float32, 16),
        _row(warp_size, torch.bfloat16, 16),
        _row(warp_size, torch.float32, 64, known=False),
        _row(warp_size, torch.float32, 8),
    ]


def _row(warp_size: int, dtype: torch.dtype, rank: int, known: bool = True) -> Row:
    tiles, even = pick_config(4096, 4096, rank, warp_size)
    size = "i32:16" if even else "i32"
    kernel, vector, products = weight_norm_rows_fwd_kernel, 4 * tiles.rows, 4 * tiles.rows * tiles.rank
    loads = (tiles.rows * tiles.columns * dtype.itemsize, 4 * tiles.rank * tiles.columns, products, products)
    accesses = (STAGES * sum(loads[:2]) + sum(loads[2:])) // (16 * tiles.warps * warp_size)
    return Row(
        name=f"{TRITON_DTYPES[dtype]} r={rank}{'' if known else ' all norms'}",
        kernel=kernel,
        signature={
            **dict.fromkeys(kernel.arg_names[:7], "*fp32"),
            **{"weight": f"*{TRITON_DTYPES[dtype]}", "rows": size, "columns": size, "rank": size},
            **dict.fromkeys(("scale", "floor"), "fp32"),
        },
        constexprs={"KNOWN": known, "EVEN": even, **_shape(tiles)},
        num_warps=tiles.warps,
        registers=REGISTERS,
        even=even,
        loads=(*loads, vector) if known else loads,
        stores=(vector, products),
        wide_loads=dict.fromkeys(TARGETS, accesses),  # what fills the pipeline repeats the loads of its loop
        num_stages=STAGES,
        fp_fusion=True,
    )
