"""The search for scales and zero points as Triton functions: see [`search_grid`][], whose arithmetic they repeat."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from lightning_weights.kernels.compensate_columns.grid_search import CLIP_GRID, CLIP_NORM, CLIP_STEPS, SMALLEST
from lightning_weights.kernels.statsq.row_kernels import round_to_even

# In the interpreter, these are no numbers: tensors come before them.
STEPS, SHARES, NORM, FLOOR = (tl.constexpr(value) for value in (CLIP_STEPS, CLIP_GRID, CLIP_NORM, SMALLEST))
TINY = tl.constexpr(2.0**-126)  # smallest normal number


@triton.jit
def clamp(x, low, high):
    """Return numbers in a range; NaN remains."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _load(weight, first, end, row, inside, rows, GROUP: tl.constexpr):
    """Load GROUP columns; those from the end on are 0, which changes neither a range nor an error."""
    column = first + tl.arange(0, GROUP)
    here = (column < end)[:, None] if inside is None else (column < end)[:, None] & inside[None, :]
    return tl.load(weight + column.to(tl.int64)[:, None] * rows + row[None, :], mask=here, other=0.0)


@triton.jit
def _grid(low, high, top, GRID: tl.constexpr):
    middle = 0.5 * (top + 1.0)
    if GRID == "quarot":
        return tl.div_rn(high, middle - 1.0), tl.zeros_like(high) + middle
    scale = tl.div_rn(high - low, top)
    return scale, tl.zeros_like(high) + middle if GRID == "gptq" else round_to_even(tl.div_rn(-low, scale))


@triton.jit
def _errors(w, scale, zero, top):
    near = clamp(round_to_even(tl.div_rn(w, scale)), -zero, top - zero) * scale
    return tl.sum(tl.exp2(tl.log2(tl.abs(near - w)) * NORM), axis=0)


@triton.jit
def search_columns(
    weight, first, end, row, inside, rows, top, GRID: tl.constexpr, CLIP: tl.constexpr, GROUP: tl.constexpr
):
    """Return scale and zero point of every row over some columns; GROUP of them stay in registers."""
    held = _load(weight, first, end, row, inside, rows, GROUP)
    low, high = tl.minimum(tl.min(held, axis=0), 0.0), tl.maximum(tl.max(held, axis=0), 0.0)
    for other in range(first + GROUP, end, GROUP):
        more = _load(weight, other, end, row, inside, rows, GROUP)
        low, high = tl.minimum(tl.min(more, axis=0), low), tl.maximum(tl.max(more, axis=0), high)
    if GRID != "asymmetric":
        high = tl.maximum(high, -low)
        low = -high
    if GRID == "quarot":
        high = tl.maximum(high, FLOOR)
    else:
        nothing = high - low <= (top + 1.0) * TINY
        low, high = tl.where(nothing, -1.0, low), tl.where(nothing, 1.0, high)
    scale, zero = _grid(low, high, top, GRID)
    if CLIP:
        best = tl.zeros_like(low) + float("inf")
        for step in range(STEPS):
            share = tl.div_rn(SHARES - step * 1.0, SHARES)
            s, z = _grid(share * low, share * high, top, GRID)
            error = _errors(held, s, z, top)
            for other in range(first + GROUP, end, GROUP):
                error += _errors(_load(weight, other, end, row, inside, rows, GROUP), s, z, top)
            better = error < best
            best = tl.where(better, error, best)
            scale, zero = tl.where(better, s, scale), tl.where(better, z, zero)
    return scale, zero
