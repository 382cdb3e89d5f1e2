"""What the kernel of the statistics-based quantizer does with a row, as Triton functions."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_and_step(start, columns, share, within, ONCE: tl.constexpr, BLOCK: tl.constexpr):
    """Return the first block of a row, and the step of the row."""
    w = tl.load(start + within, mask=within < columns, other=0.0).to(tl.float32)
    sums = tl.abs(w)
    if not ONCE:
        for first in range(BLOCK, columns, BLOCK):
            more = tl.load(start + first + within, mask=first + within < columns, other=0.0)
            sums += tl.abs(more.to(tl.float32))
    return w, tl.sum(sums) * share


@triton.jit
def grid_position(w, divisor, n, top):
    """Return where weights are on the grid, before rounding."""
    u = tl.div_rn(w, divisor)
    u = tl.minimum(tl.maximum(u, -n, propagate_nan=tl.PropagateNan.ALL), top, propagate_nan=tl.PropagateNan.ALL)
    return u - 0.5


@triton.jit
def round_to_even(u):
    """Return the nearest whole numbers."""
    magic = 12582912.0  # 1.5 * 2**23: sums with it have no fractional bits left
    return (u + magic) - magic


@triton.jit
def mark_movable(u, movable, at, inside, n, boundary_range):
    """Store which weights may move, and return how many."""
    nearest = tl.minimum(tl.maximum(tl.floor(u), -n), n - 2.0) + 0.5
    near = (tl.abs(u - nearest) <= boundary_range) & inside
    tl.store(movable + at, near.to(tl.int8), mask=inside)
    return tl.sum(near.to(tl.int32))


@triton.jit
def advance(k, previous, direction, ema, at, inside, momentum, threshold):
    """Advance the tracker and return how many codes changed, oscillated, and have an average above the threshold."""
    old = tl.load(previous + at, mask=inside, other=0).to(tl.int32)
    last = tl.load(direction + at, mask=inside, other=0).to(tl.int32)
    average = tl.load(ema + at, mask=inside, other=0.0).to(tl.float32)
    turn = (old > k).to(tl.int32) - (old < k).to(tl.int32)
    oscillated = (turn * last == -1) & inside
    average = (1.0 - momentum) * average + tl.where(oscillated, momentum, 0.0)
    tl.store(previous + at, k.to(tl.int8), mask=inside)
    tl.store(direction + at, tl.where(turn != 0, turn, last).to(tl.int8), mask=inside)
    kept = average.to(ema.dtype.element_ty)
    tl.store(ema + at, kept, mask=inside)
    changed = (turn != 0) & inside
    above = (kept.to(tl.float32) > threshold) & inside
    return tl.sum(changed.to(tl.int32)), tl.sum(oscillated.to(tl.int32)), tl.sum(above.to(tl.int32))


@triton.jit
def store_counts(counts, flips, oscillations, oscillating, free):
    """Store the four counts of a row."""
    tl.store(counts, flips)
    tl.store(counts + 1, oscillations)
    tl.store(counts + 2, oscillating)
    tl.store(counts + 3, free)
