"""Variants of the projected Adam step that are compiled ahead of time."""

from __future__ import annotations

import triton.language as tl

from lightning_weights.kernels._aot import TARGETS, Row
from lightning_weights.kernels.projected_adam.cost import STAGES, pick_config, rows_per_block
from lightning_weights.kernels.projected_adam.step_kernels import projected_adam_fwd_kernel

REGISTERS = 168  # budget; lets three programs of 128 threads share a multiprocessor


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: moments of both widths, and tails of the largest rank and from the left."""
    return [
        _row(warp_size, tl.float32, 16),
        _row(warp_size, tl.float32, 32, even=False),
        _row(warp_size, tl.float32, 16, codes=True),
        _row(warp_size, tl.bfloat16, 8, left=True, even=False),
    ]


def _row(
    warp_size: int, dtype: tl.dtype, rank: int, *, left: bool = False, codes: bool = False, even: bool = True
) -> Row:
    tiles = pick_config(rank, warp_size, even)
    size, moments = tiles.outer * tiles.inner, tiles.outer * tiles.rank
    itemsize, projection = dtype.primitive_bitwidth // 8, 4 * tiles.rank * tiles.inner
    # Codes, their maxima and what they stand for; then three look-ups per moment to find the nearest code.
    states = (moments, 4 * moments, 4 * moments) * 2 + (4 * moments,) * 6 if codes else (4 * moments,) * 2
    loop = size * itemsize + projection
    # what fills the pipeline of the first loop repeats its loads, once more on AMD; the second has none
    rounds = {target: STAGES + (2 if target == "gfx942" else 1) for target in TARGETS}
    wide = {target: count * loop + (0 if codes else 8 * moments) for target, count in rounds.items()}
    return Row(
        name=f"{dtype} p={rank}{' left' if left else ''}{' 8 bit' if codes else ''}",
        kernel=projected_adam_fwd_kernel,
        signature={
            **dict.fromkeys(("table", "tasks"), "*i64"),
            **dict.fromkeys(("signed_map", "unsigned_map"), "*fp32"),
            "rank": "i32:16" if even else "i32",
            **dict.fromkeys(("step", "beta1", "beta2", "eps", "kept"), "fp32"),
        },
        constexprs={
            **{"PARAM": dtype, "GRAD": dtype, "LEFT": left, "CODES": codes, "EVEN": even},
            **{"OUTER": tiles.outer, "INNER": tiles.inner, "RANK": tiles.rank, "SHARE": rows_per_block(rank)},
        },
        num_warps=tiles.warps,
        registers=REGISTERS,
        even=even,
        loads=(size * itemsize, projection, *states, projection, size * itemsize),
        stores=(*((4, moments) * 2 if codes else (4 * moments,) * 2), size * itemsize),
        wide_loads={target: moved // (16 * tiles.warps * warp_size) for target, moved in wide.items()},
        num_stages=STAGES,
        fp_fusion=True,
    )
