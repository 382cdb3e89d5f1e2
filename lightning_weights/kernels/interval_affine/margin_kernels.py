"""The margin head as Triton kernels: tiles of w_y - w_j live in registers, in the backward pass again."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def _tile(pointer, row, row_inside, k, inner, EVEN: tl.constexpr):
    """Load rows of a matrix; a mask that changes along a row would make every access 32 bits wide."""
    mask = row_inside[:, None] if EVEN else row_inside[:, None] & (k < inner)[None, :]
    return tl.load(pointer + row[:, None] * inner + k[None, :], mask=mask, other=0.0)


@triton.jit
def interval_margins_fwd_kernel(
    center,  # [samples, inner]
    radius,  # [samples, inner]
    weight,  # [classes, inner]
    bias,
    labels,  # int64 [samples]; margins of labels that are no class are NaN
    margins,  # [samples, classes - 1]
    samples,
    classes,
    inner,
    slack,
    BIAS: tl.constexpr,
    SOUND: tl.constexpr,
    EVEN: tl.constexpr,  # inner is a multiple of its block
    BLOCK_SAMPLES: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """Compute margins of some samples over some classes; programs write disjoint elements."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_SAMPLES + tl.arange(0, BLOCK_SAMPLES)
    j = tl.program_id(1).to(tl.int64) * BLOCK_CLASSES + tl.arange(0, BLOCK_CLASSES)
    y = tl.load(labels + n, mask=n < samples, other=-1)
    known = (y >= 0) & (y < classes)
    margin = tl.zeros((BLOCK_SAMPLES, BLOCK_CLASSES), tl.float32)
    terms = tl.zeros((BLOCK_SAMPLES, BLOCK_CLASSES), tl.float32)
    for start in range(0, inner, BLOCK_INNER):
        k = start + tl.arange(0, BLOCK_INNER)
        c = _tile(center, n, n < samples, k, inner, EVEN)[:, None, :]
        r = _tile(radius, n, n < samples, k, inner, EVEN)[:, None, :]
        own = _tile(weight, y, known, k, inner, EVEN)[:, None, :]
        other = _tile(weight, j, j < classes, k, inner, EVEN)[None, :, :]
        difference = own - other
        margin += tl.sum(difference * c - tl.abs(difference) * r, axis=2)
        if SOUND:
            terms += tl.sum((tl.abs(own) + tl.abs(other)) * (tl.abs(c) + r), axis=2)
    if BIAS:
        own_bias = tl.load(bias + y, mask=known, other=0.0)[:, None]
        other_bias = tl.load(bias + j, mask=j < classes, other=0.0)[None, :]
        margin += own_bias - other_bias
        terms += tl.abs(own_bias) + tl.abs(other_bias)
    if SOUND:
        margin -= slack * terms
    margin = tl.where(known[:, None], margin, float("nan"))
    column = j[None, :] - (j[None, :] > y[:, None]).to(tl.int64)
    inside = (n < samples)[:, None] & (j[None, :] != y[:, None]) & (column >= 0) & (column < classes - 1)
    tl.store(margins + n[:, None] * (classes - 1) + column, margin, mask=inside)


@triton.jit
def interval_margins_bwd_rows_kernel(
    grad,  # [samples, classes]: of the margins, zero at the true class
    radius,  # [samples, inner]
    weight,  # [classes, inner]
    labels,  # int64 [samples]
    grad_radius,  # [samples, inner]
    grad_own,  # [samples, inner]: of the row of the true class through the half-width
    samples,
    classes,
    inner,
    EVEN: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """Sum over classes what reaches half-widths and true classes; programs write disjoint tiles."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_SAMPLES + tl.arange(0, BLOCK_SAMPLES)
    k = tl.program_id(1).to(tl.int64) * BLOCK_INNER + tl.arange(0, BLOCK_INNER)
    y = tl.load(labels + n, mask=n < samples, other=-1)
    own = _tile(weight, y, (y >= 0) & (y < classes), k, inner, EVEN)[:, None, :]
    widths = tl.zeros((BLOCK_SAMPLES, BLOCK_INNER), tl.float32)
    slopes = tl.zeros((BLOCK_SAMPLES, BLOCK_INNER), tl.float32)
    for start in range(0, classes, BLOCK_CLASSES):
        j = start + tl.arange(0, BLOCK_CLASSES)
        inside = (n < samples)[:, None] & (j < classes)[None, :]
        g = tl.load(grad + n[:, None] * classes + j[None, :], mask=inside, other=0.0)[:, :, None]
        difference = own - _tile(weight, j, j < classes, k, inner, EVEN)[None, :, :]
        widths += tl.sum(g * tl.abs(difference), axis=1)
        slopes += tl.sum(tl.where(difference > 0, g, tl.where(difference < 0, -g, 0.0)), axis=1)
    r = _tile(radius, n, n < samples, k, inner, EVEN)
    mask = (n < samples)[:, None] if EVEN else (n < samples)[:, None] & (k < inner)[None, :]
    at = n[:, None] * inner + k[None, :]
    tl.store(grad_radius + at, -widths, mask=mask)
    tl.store(grad_own + at, -slopes * r, mask=mask)


@triton.jit
def interval_margins_bwd_classes_kernel(
    grad,  # [samples, classes]: of the margins, zero at the true class
    radius,  # [samples, inner]
    weight,  # [classes, inner]
    labels,  # int64 [samples]
    grad_weight,  # [classes, inner]: through the half-width, of every class as the other one
    samples,
    classes,
    inner,
    EVEN: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """Sum over samples what reaches the rows of the other classes; programs write disjoint tiles."""
    j = tl.program_id(0).to(tl.int64) * BLOCK_CLASSES + tl.arange(0, BLOCK_CLASSES)
    k = tl.program_id(1).to(tl.int64) * BLOCK_INNER + tl.arange(0, BLOCK_INNER)
    other = _tile(weight, j, j < classes, k, inner, EVEN)[None, :, :]
    total = tl.zeros((BLOCK_CLASSES, BLOCK_INNER), tl.float32)
    for start in range(0, samples, BLOCK_SAMPLES):
        n = start + tl.arange(0, BLOCK_SAMPLES).to(tl.int64)
        y = tl.load(labels + n, mask=n < samples, other=-1)
        inside = (n < samples)[:, None] & (j < classes)[None, :]
        g = tl.load(grad + n[:, None] * classes + j[None, :], mask=inside, other=0.0)[:, :, None]
        difference = _tile(weight, y, (y >= 0) & (y < classes), k, inner, EVEN)[:, None, :] - other
        slope = tl.where(difference > 0, g, tl.where(difference < 0, -g, 0.0))
        total += tl.sum(slope * _tile(radius, n, n < samples, k, inner, EVEN)[:, None, :], axis=0)
    mask = (j < classes)[:, None] if EVEN else (j < classes)[:, None] & (k < inner)[None, :]
    tl.store(grad_weight + j[:, None] * inner + k[None, :], total, mask=mask)
