"""Interval propagation as Triton kernels: one product kernel forward, one element-wise kernel backward."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

ROUNDOFF_4 = tl.constexpr(4 * 2.0**-24)  # four units of roundoff: of the affine map, and of the ReLU


@triton.jit
def _products(
    center,
    radius,
    weight,
    bias,
    row,
    column,
    rows,
    columns,
    inner,
    BIAS: tl.constexpr,
    SOUND: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """Multiply tiles of centres and half-widths with one load of each weight; terms are the sums of magnitudes."""
    shape: tl.constexpr = (row.shape[0], column.shape[0])
    c, r, terms = tl.zeros(shape, tl.float32), tl.zeros(shape, tl.float32), tl.zeros(shape, tl.float32)
    row_inside, column_inside = (row < rows)[:, None], (column < columns)[:, None]
    for start in range(0, inner, BLOCK_INNER):
        k = start + tl.arange(0, BLOCK_INNER)[None, :]
        row_mask = row_inside if EVEN else row_inside & (k < inner)
        x = tl.load(center + row[:, None] * inner + k, mask=row_mask, other=0.0)
        d = tl.load(radius + row[:, None] * inner + k, mask=row_mask, other=0.0)
        if EVEN:
            w = tl.load(weight + column[:, None] * inner + k)
        else:
            w = tl.load(weight + column[:, None] * inner + k, mask=column_inside & (k < inner), other=0.0)
        w = tl.trans(w)
        c = tl.dot(x, w, c, input_precision=PRECISION)
        r = tl.dot(d, tl.abs(w), r, input_precision=PRECISION)
        if SOUND:
            terms = tl.dot(tl.abs(x) + d, tl.abs(w), terms, input_precision=PRECISION)
    if BIAS:
        b = tl.load(bias + column, mask=None if EVEN else column < columns)[None, :]
        c += b
        terms += tl.abs(b)
    return c, r, terms


@triton.jit
def _total(values, inside):
    return tl.sum(tl.where(inside, values, 0.0))


@triton.jit
def _store_sums(sums, c, r, lower, upper, inside):
    active, inactive = (lower > 0) & inside, (upper < 0) & inside
    tl.store(sums, _total(r, inside))
    tl.store(sums + 1, tl.sum(active.to(tl.float32)))
    tl.store(sums + 2, tl.sum(inactive.to(tl.float32)))
    tl.store(sums + 3, _total(c, active))
    tl.store(sums + 4, _total(c, inactive))
    tl.store(sums + 5, _total(c, inside))
    tl.store(sums + 6, _total(c * c, active))
    tl.store(sums + 7, _total(c * c, inactive))


@triton.jit
def _store_behind(behind_center, behind_radius, at, lower, upper, inside, SOUND: tl.constexpr):
    lower, upper = tl.maximum(lower, 0.0), tl.maximum(upper, 0.0)
    half_width = (upper - lower) * 0.5
    if SOUND:
        half_width += ROUNDOFF_4 * upper
    tl.store(behind_center + at, (lower + upper) * 0.5, mask=inside)
    tl.store(behind_radius + at, half_width, mask=inside)


@triton.jit
def _affine_map(c, r, terms, raw, at, inside, scale, shift, column, vector_mask):
    """Store Wc + b, whose gradient needs it, and scale and shift; terms become what the roundoff is relative to."""
    tl.store(raw + at, c, mask=inside)
    factor = tl.load(scale + column, mask=vector_mask)[None, :]
    summand = tl.load(shift + column, mask=vector_mask)[None, :]
    return c * factor + summand, r * tl.abs(factor), terms + tl.abs(summand)


@triton.jit
def interval_affine_fwd_kernel(
    center,
    radius,  # [rows, inner]
    weight,  # [columns, inner]
    bias,
    scale,
    shift,  # [columns]
    pre_center,
    pre_radius,
    raw,
    behind_center,
    behind_radius,  # [rows, columns]
    partial,  # [programs, 8]: sums over one tile each
    rows,
    columns,
    inner,
    slack,
    BIAS: tl.constexpr,
    AFFINE: tl.constexpr,
    RELU: tl.constexpr,
    SOUND: tl.constexpr,
    EVEN: tl.constexpr,  # columns and inner are multiples of their blocks; rows may always be ragged
    PRECISION: tl.constexpr,  # of the products: ieee, or tf32 where the user allowed it
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """Compute one tile of pre-activations and all that follows from it, see [`interval_affine_reference`][].

    Programs write disjoint tiles and disjoint partial sums.
    """
    row_block, column_block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = column_block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    c, r, terms = _products(
        center, radius, weight, bias, row, column, rows, columns, inner, BIAS, SOUND, EVEN, PRECISION, BLOCK_INNER
    )
    vector_mask = None if EVEN else column < columns
    inside = (row < rows)[:, None] if EVEN else (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * columns + column[None, :]
    if SOUND:
        r += slack * terms
        terms = tl.zeros_like(c)
    if AFFINE:
        c, r, terms = _affine_map(c, r, terms, raw, at, inside, scale, shift, column, vector_mask)
    if SOUND:
        r += ROUNDOFF_4 * (tl.abs(c) + r + terms)
    tl.store(pre_center + at, c, mask=inside)
    tl.store(pre_radius + at, r, mask=inside)
    lower, upper = c - r, c + r
    _store_sums(partial + 8 * (row_block * tl.num_programs(1) + column_block), c, r, lower, upper, inside)
    if RELU:
        _store_behind(behind_center, behind_radius, at, lower, upper, inside, SOUND)


@triton.jit
def _through_relu(
    g_c, g_r, lower, upper, grad_center, grad_radius, at, inside, CENTER: tl.constexpr, RADIUS: tl.constexpr
):
    center = tl.load(grad_center + at, mask=inside, other=0.0) if CENTER else tl.zeros_like(g_c)
    radius = tl.load(grad_radius + at, mask=inside, other=0.0) if RADIUS else tl.zeros_like(g_c)
    g_lower = tl.where(lower > 0, 0.5 * (center - radius), 0.0)
    g_upper = tl.where(upper > 0, 0.5 * (center + radius), 0.0)
    return g_c + g_lower + g_upper, g_r + g_upper - g_lower


@triton.jit
def _through_sums(g_c, g_r, c, lower, upper, grad_sums):
    active = tl.load(grad_sums + 3) + 2 * tl.load(grad_sums + 6) * c
    inactive = tl.load(grad_sums + 4) + 2 * tl.load(grad_sums + 7) * c
    selected = tl.where(lower > 0, active, 0.0) + tl.where(upper < 0, inactive, 0.0)
    return g_c + tl.load(grad_sums + 5) + selected, g_r + tl.load(grad_sums)


@triton.jit
def _store_totals(totals, values, inside, vector_mask):
    tl.store(totals, tl.sum(tl.where(inside, values, 0.0), axis=0), mask=vector_mask)


@triton.jit
def interval_affine_bwd_kernel(
    grad_pre_center,
    grad_pre_radius,
    grad_center,
    grad_radius,  # [rows, columns]
    pre_center,
    pre_radius,
    raw,
    grad_c,
    grad_r,  # [rows, columns]
    grad_sums,  # [8]
    scale,  # [columns]
    partial,  # [3, row blocks, columns]: sums over rows of the gradient, of its product with raw, and with r
    rows,
    columns,
    PRE_CENTER: tl.constexpr,
    PRE_RADIUS: tl.constexpr,
    SUMS: tl.constexpr,  # which gradients there are
    CENTER: tl.constexpr,
    RADIUS: tl.constexpr,
    AFFINE: tl.constexpr,
    EVEN: tl.constexpr,  # columns are a multiple of their block; rows may always be ragged
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Carry the gradients of one tile back through ReLU, sums and affine map; programs write disjoint tiles."""
    row_block = tl.program_id(0).to(tl.int64)
    row = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    vector_mask = None if EVEN else column < columns
    inside = (row < rows)[:, None] if EVEN else (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * columns + column[None, :]
    c = tl.load(pre_center + at, mask=inside, other=0.0)
    r = tl.load(pre_radius + at, mask=inside, other=0.0)
    lower, upper = c - r, c + r
    g_c = tl.load(grad_pre_center + at, mask=inside, other=0.0) if PRE_CENTER else tl.zeros_like(c)
    g_r = tl.load(grad_pre_radius + at, mask=inside, other=0.0) if PRE_RADIUS else tl.zeros_like(c)
    if SUMS:
        g_c, g_r = _through_sums(g_c, g_r, c, lower, upper, grad_sums)
    if CENTER or RADIUS:
        g_c, g_r = _through_relu(g_c, g_r, lower, upper, grad_center, grad_radius, at, inside, CENTER, RADIUS)
    size = tl.num_programs(0).to(tl.int64) * columns
    totals = partial + row_block * columns + column
    _store_totals(totals, g_c, inside, vector_mask)
    if AFFINE:
        _store_totals(totals + size, g_c * tl.load(raw + at, mask=inside, other=0.0), inside, vector_mask)
        _store_totals(totals + 2 * size, g_r * r, inside, vector_mask)
        factor = tl.load(scale + column, mask=vector_mask)[None, :]
        g_c, g_r = g_c * factor, g_r * tl.abs(factor)
    tl.store(grad_c + at, g_c, mask=inside)
    tl.store(grad_r + at, g_r, mask=inside)
