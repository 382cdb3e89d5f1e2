"""Variants of the kernels that are compiled ahead of time."""

from __future__ import annotations

from typing import Any

from lightning_weights.kernels._aot import Row
from lightning_weights.kernels.fiber_conv.conv_kernels import (
    fiber_conv_bwd_basis_kernel,
    fiber_conv_bwd_weight_kernel,
    fiber_conv_fwd_kernel,
)
from lightning_weights.kernels.fiber_conv.cost import INDEX, STAGES, Config, pick_config

REGISTERS = {32: 255, 64: 288}  # budgets by warp size
# Pipelined loops repeat their loads; where matrix units leave a result, it may go out in narrower stores.
WIDE: dict[str, dict[str, Any]] = {
    "fiber_conv_fwd_kernel": {
        "wide_loads": {"sm_80": 14, "sm_90": 14, "sm_100": 14, "gfx942": 14},
        "opcodes": {"sm_80": "HMMA", "gfx942": "v_mfma"},
    },
    "fiber_conv_bwd_basis_kernel": {
        "wide_loads": {"sm_80": 24, "sm_90": 8, "sm_100": 36, "gfx942": 24},
        "wide_stores": {"gfx942": 0},
        "opcodes": {"sm_80": "HMMA", "gfx942": "v_mfma"},
    },
    "fiber_conv_bwd_weight_kernel": {
        "wide_loads": {"sm_80": 24, "sm_90": 24, "sm_100": 36, "gfx942": 36},
        "opcodes": {"sm_80": "HMMA", "gfx942": "v_mfma"},
    },
}


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: bf16 on tensor cores with full tiles, and ragged sizes in fp32."""
    kernels = (fiber_conv_fwd_kernel, fiber_conv_bwd_basis_kernel, fiber_conv_bwd_weight_kernel)
    return [_row(kernel, warp_size, even) for kernel in kernels for even in (True, False)]


def _row(kernel: Any, warp_size: int, even: bool) -> Row:
    name, (orientations, channels, functions) = ("bf16", (16, 64, 64)) if even else ("fp32", (12, 60, 60))
    config = pick_config(orientations, channels, functions, warp_size, exact=not even)
    forward = kernel is fiber_conv_fwd_kernel
    size = "i32:16" if even else "i32"
    kinds = {
        **dict.fromkeys(("features", "basis", "weight", "fiber", "result", "grad"), f"*{name}"),
        **dict.fromkeys(("others", "order", "offsets", "senders", "receivers"), "*i64"),
        **dict.fromkeys(("bias", "sums", "partial"), "*fp32"),
        **{"rows": "i32", "orientations": "i32", "channels": size, "functions": size},
    }
    tiles = {"CHANNELS": config.channels, "FUNCTIONS": config.basis, "PRECISION": "tf32" if even else "ieee"}
    own = {"ORDERED": False, "FIBER": True, "BIAS": True, "EDGES": config.edges, "PADDED": config.orientations}
    loads, stores = _moved(kernel, config, 2 if even else 4)
    return Row(
        name=f"{name} O={orientations}",
        kernel=kernel,
        signature={argument: kind for argument, kind in kinds.items() if argument in kernel.arg_names},
        constexprs={"EVEN": even, **tiles, **(own if forward else {"ROWS": config.rows})},
        num_warps=config.warps,
        registers=REGISTERS[warp_size],
        even=even,
        loads=loads,
        stores=stores,
        num_stages=STAGES,
        fp_fusion=True,
        **(WIDE[kernel.fn.__name__] if even else {}),
    )


def _moved(kernel: Any, config: Config, itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the bytes that each vector load and store of a program moves."""
    weight = config.channels * config.basis
    if kernel is fiber_conv_fwd_kernel:
        rows, outputs = config.edges * config.orientations, config.orientations * config.channels
        products = (rows * INDEX, rows * config.channels * itemsize, rows * config.basis * itemsize, weight * itemsize)
        return (*products, config.channels * 4, outputs * itemsize), (outputs * 4, config.channels * itemsize)
    ends = (config.rows * INDEX, config.rows * INDEX, *(config.rows * config.channels * itemsize,) * 2)
    functions = config.rows * config.basis * itemsize
    if kernel is fiber_conv_bwd_basis_kernel:
        return (*ends, weight * itemsize), (functions,)
    return (*ends, functions), (weight * 4,)
