"""Variants of the kernels that are compiled ahead of time."""

from __future__ import annotations

from typing import Any

from lightning_weights.kernels._aot import Row
from lightning_weights.kernels.interval_affine import affine_kernels, margin_kernels
from lightning_weights.kernels.interval_affine.cost import STAGES, backward_tiles, margin_tiles, pick_config

# Budgets. Products in fp32 without tensor cores hold two 64 x 64 accumulators and the operands of a step in registers.
REGISTERS_PRODUCT, REGISTERS_BACKWARD, REGISTERS_MARGINS = 255, 96, 128
TENSOR_CORES = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}
FP32_PRODUCTS = {"sm_80": "FFMA", "sm_90": "FFMA", "sm_100": "FFMA", "gfx942": "v_mfma_f32"}
# Loads of three tiles per stage, one access each, and of bias, scale and shift by every thread; tensor cores and AMD's
# matrix cores spread outputs over threads in their own ways, and the last stages of a pipeline repeat the loop's loads.
WIDE_FP32 = {"sm_80": 3 * STAGES + 3, "sm_90": 3 * STAGES + 3, "sm_100": 3 * STAGES + 3, "gfx942": 23}
WIDE_TF32 = {"sm_80": 8, "sm_90": 8, "sm_100": 23, "gfx942": 23}


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: products in every precision, everything behind them, full blocks and tails."""
    return [
        _forward(warp_size, "fp32"),
        _forward(warp_size, "fp32 sound", sound=True),
        _forward(warp_size, "tf32"),
        _forward(warp_size, "fp32", even=False),
        *(_backward(warp_size, even) for even in (True, False)),
        *(
            _margins(warp_size, kernel, loaded, stored, even)
            for kernel, loaded, stored in (
                (margin_kernels.interval_margins_fwd_kernel, 4, 0),
                (margin_kernels.interval_margins_bwd_rows_kernel, 3, 2),
                (margin_kernels.interval_margins_bwd_classes_kernel, 3, 1),
            )
            for even in (True, False)
        ),
    ]


def _forward(warp_size: int, name: str, *, sound: bool = False, even: bool = True) -> Row:
    kernel, (tiles, _) = affine_kernels.interval_affine_fwd_kernel, pick_config(512, 512 if even else 10, warp_size)
    precision = "tf32" if name == "tf32" else "ieee"
    size = "i32:16" if even else "i32"
    inputs, weights = 4 * tiles.rows * tiles.inner, 4 * tiles.columns * tiles.inner
    outputs, vector = 4 * tiles.rows * tiles.columns, 4 * tiles.columns
    return Row(
        name=name,
        kernel=kernel,
        signature={
            **dict.fromkeys(kernel.arg_names[:12], "*fp32"),
            **{"rows": "i32", "columns": size, "inner": size, "slack": "fp32"},
        },
        constexprs={
            **dict.fromkeys(("BIAS", "AFFINE", "RELU"), True),
            **{"SOUND": sound, "EVEN": even, "PRECISION": precision},
            **{"BLOCK_ROWS": tiles.rows, "BLOCK_COLUMNS": tiles.columns, "BLOCK_INNER": tiles.inner},
        },
        num_warps=tiles.warps,
        registers=REGISTERS_PRODUCT,
        even=even,
        loads=(inputs, inputs, weights, vector, vector, vector),
        stores=(outputs,) * 5,
        wide_loads=WIDE_TF32 if precision == "tf32" else WIDE_FP32,
        opcodes=TENSOR_CORES if precision == "tf32" else FP32_PRODUCTS,
        num_stages=STAGES,
        fp_fusion=True,
    )


def _backward(warp_size: int, even: bool) -> Row:
    kernel, tiles = affine_kernels.interval_affine_bwd_kernel, backward_tiles(warp_size)
    tile, vector = 4 * tiles.rows * tiles.columns, 4 * tiles.columns
    flags = ("PRE_CENTER", "PRE_RADIUS", "SUMS", "CENTER", "RADIUS", "AFFINE")
    return Row(
        name="fp32",
        kernel=kernel,
        signature={
            **dict.fromkeys(kernel.arg_names[:12], "*fp32"),
            **{"rows": "i32", "columns": "i32:16" if even else "i32"},
        },
        constexprs={
            **dict.fromkeys(flags, True),
            **{"EVEN": even, "BLOCK_ROWS": tiles.rows, "BLOCK_COLUMNS": tiles.columns},
        },
        num_warps=tiles.warps,
        registers=REGISTERS_BACKWARD,
        even=even,
        loads=(*[tile] * 7, vector),
        stores=(tile, tile, vector, vector, vector),
        fp_fusion=True,
    )


def _margins(warp_size: int, kernel: Any, tiles_loaded: int, tiles_stored: int, even: bool) -> Row:
    tiles, _ = margin_tiles(512 if even else 10, warp_size)
    tile, pairs, labels, biases = (
        4 * tiles.rows * tiles.inner,
        4 * tiles.rows * tiles.columns,
        8 * tiles.rows,
        4 * tiles.rows,
    )
    forward = kernel is margin_kernels.interval_margins_fwd_kernel
    return Row(
        name="fp32",
        kernel=kernel,
        signature={
            **{name: "*fp32" for name in kernel.arg_names if name.islower()},
            **{"labels": "*i64", "slack": "fp32", "samples": "i32", "classes": "i32"},
            "inner": "i32:16" if even else "i32",
        },
        constexprs={
            **({"BIAS": True, "SOUND": False} if forward else {}),
            **{"EVEN": even, "BLOCK_SAMPLES": tiles.rows, "BLOCK_CLASSES": tiles.columns, "BLOCK_INNER": tiles.inner},
        },
        num_warps=tiles.warps,
        registers=REGISTERS_MARGINS,
        even=even,
        loads=(*[tile] * tiles_loaded, labels, *((biases, biases) if forward else (pairs,))),
        stores=(pairs,) if forward else (tile,) * tiles_stored,
        fp_fusion=True,
    )
