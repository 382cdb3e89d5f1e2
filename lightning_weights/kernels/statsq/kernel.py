"""The statistics-based quantizer as a Triton kernel: one program per row, which reads it once."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_weights.kernels._aot import Row
from lightning_weights.kernels._op import WARP_SIZE
from lightning_weights.kernels.statsq.cost import LONGEST_ROW, pick_config
from lightning_weights.kernels.statsq.reference import TOP
from lightning_weights.kernels.statsq.row_kernels import (
    advance,
    grid_position,
    mark_movable,
    round_to_even,
    row_and_step,
    store_counts,
)

TRITON_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
ALIGNMENT = 16  # bytes of the widest load and store
WIDE_GROUP = 16  # columns; 16 bytes of codes
REGISTERS, REGISTERS_ODD = 64, 128  # budgets


@triton.jit
def statsq_fwd_kernel(
    weight,  # [rows, columns], contiguous, as is everything of its shape
    values,  # like weight, if VALUES
    steps,  # fp32 [rows]
    codes,  # int8, if CODES
    movable,  # int8, if MASK
    previous,  # int8, if TRACK, as are the next two
    direction,
    ema,
    counts,  # int32 [rows, 4], if CODES
    groups,
    n,
    top,
    smallest,  # positive normal number
    share,  # 2 / (n * columns)
    boundary_range,
    momentum,
    threshold,
    VALUES: tl.constexpr,
    CODES: tl.constexpr,
    MASK: tl.constexpr,
    TRACK: tl.constexpr,
    GROUP: tl.constexpr,  # columns in a group: 16 lets masks be constant over a vector, and accesses be 128 bits wide
    ONCE: tl.constexpr,  # a row is not longer than BLOCK
    BLOCK: tl.constexpr,
):
    """Quantize one row, see [`statsq_reference`][]; all arithmetic in fp32."""
    row, within, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK), groups * GROUP
    w, step = row_and_step(weight + row * columns, columns, share, within, ONCE, BLOCK)
    tl.store(steps + row, step)
    flips, oscillations, oscillating, free = 0, 0, 0, 0
    for start in range(0, BLOCK if ONCE else columns, BLOCK):
        at, inside = row * columns + start + within, start + within < columns
        if not ONCE:
            w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        u = grid_position(w, tl.maximum(step, smallest), n, top)
        k = round_to_even(u)
        if VALUES:
            tl.store(values + at, ((k + 0.5) * step).to(values.dtype.element_ty), mask=inside)
        if CODES:
            tl.store(codes + at, k.to(tl.int8), mask=inside)
        if MASK:
            free += mark_movable(u, movable, at, inside, n, boundary_range)
        if TRACK:
            now = advance(k.to(tl.int32), previous, direction, ema, at, inside, momentum, threshold)
            flips, oscillations, oscillating = flips + now[0], oscillations + now[1], oscillating + now[2]
    if CODES:
        store_counts(counts + row * 4, flips, oscillations, oscillating, free)


def launch_quantize(weight: Tensor, bits: int, values: Tensor) -> None:
    """Run the kernel for the values; arguments as those of the eager `quantize`."""
    step = weight.new_empty(len(weight), dtype=torch.float32)
    contiguous = values if values.is_contiguous() else torch.empty_like(values, memory_format=torch.contiguous_format)
    _launch(weight.contiguous(), bits, contiguous, step, None, None, (), None, 0.0, 0.0, 0.0)
    if contiguous is not values:
        values.copy_(contiguous)


def launch_observe(
    weight: Tensor,
    bits: int,
    codes: Tensor,
    step: Tensor,
    values: Tensor | None,
    movable: Tensor | None,
    counts: Tensor,
    tracker: Sequence[Tensor],
    boundary_range: float,
    momentum: float,
    threshold: float,
) -> None:
    """Run the kernel for codes and whatever else is given; arguments as those of the eager `observe`."""
    of_rows = weight.new_zeros((len(weight), len(counts)), dtype=torch.int32)
    state = [tensor.contiguous() for tensor in tracker]
    mask = None if movable is None else movable.view(torch.int8)
    _launch(weight.contiguous(), bits, values, step, codes, mask, state, of_rows, boundary_range, momentum, threshold)
    for tensor, new in zip(tracker, state, strict=True):
        if new is not tensor:
            tensor.copy_(new)
    torch.sum(of_rows, 0, dtype=torch.int64, out=counts)


def _launch(
    weight: Tensor,
    bits: int,
    values: Tensor | None,
    step: Tensor,
    codes: Tensor | None,
    mask: Tensor | None,
    tracker: Sequence[Tensor],
    counts: Tensor | None,
    boundary_range: float,
    momentum: float,
    threshold: float,
) -> None:
    (rows, columns), n = weight.shape, 2.0 ** (bits - 1)
    given = [tensor for tensor in (weight, values, codes, mask, *tracker) if tensor is not None]
    wide = columns % WIDE_GROUP == 0 and all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in given)
    group = WIDE_GROUP if wide else 1
    block, warps = pick_config(columns, wide, WARP_SIZE)
    if not weight.numel():
        return
    previous, direction, ema = tracker or (step, step, step)
    with torch.cuda.device_of(weight):
        statsq_fwd_kernel[(rows,)](
            weight,
            step if values is None else values,
            step,
            step if codes is None else codes,
            step if mask is None else mask,
            previous,
            direction,
            ema,
            step if counts is None else counts,
            columns // group,
            n,
            n * TOP,
            torch.finfo(torch.float32).tiny,
            2.0 / (n * columns),
            boundary_range,
            momentum,
            threshold,
            VALUES=values is not None,
            CODES=codes is not None,
            MASK=mask is not None,
            TRACK=bool(tracker),
            GROUP=group,
            ONCE=columns <= block,
            BLOCK=block,
            num_warps=warps,
            enable_fp_fusion=False,
        )


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: values of both widths, everything at once, and everything for an odd row."""
    return [
        _row(warp_size, torch.float32, "values"),
        _row(warp_size, torch.bfloat16, "values"),
        _row(warp_size, torch.float32, "all"),
        _row(warp_size, torch.float32, "all odd"),
    ]


def _row(warp_size: int, dtype: torch.dtype, kind: str) -> Row:
    everything, odd = kind.startswith("all"), kind.endswith("odd")
    block, warps = pick_config(LONGEST_ROW, not odd, warp_size)
    kernel = statsq_fwd_kernel
    moved, bytes_of_codes = block * dtype.itemsize, block
    return Row(
        name=f"{TRITON_DTYPES[dtype]} {kind}",
        kernel=kernel,
        signature={
            **dict.fromkeys(("weight", "values"), f"*{TRITON_DTYPES[dtype]}"),
            **dict.fromkeys(("steps", "ema"), "*fp32"),
            **dict.fromkeys(("codes", "movable", "previous", "direction"), "*i8"),
            "counts": "*i32",
            "groups": "i32",
            **dict.fromkeys(("n", "top", "smallest", "share", "boundary_range", "momentum", "threshold"), "fp32"),
        },
        constexprs={
            **dict.fromkeys(("CODES", "MASK", "TRACK"), everything),
            **{"VALUES": True, "GROUP": 1 if odd else WIDE_GROUP, "ONCE": True, "BLOCK": block},
        },
        num_warps=warps,
        registers=REGISTERS_ODD if everything else REGISTERS,
        even=not odd,
        loads=(moved, bytes_of_codes, bytes_of_codes, 4 * block) if everything else (moved,),
        stores=(moved, *[bytes_of_codes] * 4, 4 * block) if everything else (moved,),
        wide_stores={"gfx942": 13} if everything else {},  # the four counts go out in one
    )
