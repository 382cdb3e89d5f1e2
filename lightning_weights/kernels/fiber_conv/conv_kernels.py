"""The convolution and its gradients as Triton kernels: every output has one program, and nothing adds atomically."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _mix(
    basis,
    weight,
    rows,
    here,
    c,
    channels,
    functions,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    FUNCTIONS: tl.constexpr,
):
    """Return rows of the basis, mixed by the weight to a block of channels."""
    kernel = tl.zeros((rows.shape[0], c.shape[0]), tl.float32)
    for start in range(0, functions, FUNCTIONS):
        b = start + tl.arange(0, FUNCTIONS)
        inside = here[:, None] if EVEN else here[:, None] & (b < functions)[None, :]
        phi = tl.load(basis + rows[:, None] * functions + b[None, :], mask=inside, other=0.0)
        w = _weight_tile(weight, c, b, channels, functions, EVEN)
        kernel = tl.dot(phi.to(tl.float32), tl.trans(w), kernel, input_precision=PRECISION)
    return kernel


@triton.jit
def _weight_tile(weight, c, b, channels, functions, EVEN: tl.constexpr):
    inside = None if EVEN else (c < channels)[:, None] & (b < functions)[None, :]
    w = tl.load(weight + c[:, None] * functions + b[None, :], mask=inside, other=None if EVEN else 0.0)
    return w.to(tl.float32)


@triton.jit
def _offset(bias, c, channels, BIAS: tl.constexpr, EVEN: tl.constexpr):
    offset = tl.zeros((c.shape[0],), tl.float32)
    if BIAS:
        offset = tl.load(bias + c, mask=None if EVEN else c < channels, other=None if EVEN else 0.0).to(tl.float32)
    return offset


@triton.jit
def _contract(result, summed, fiber, offset, node, c, orientations, channels, EVEN: tl.constexpr, PADDED: tl.constexpr):
    """Write the mean over orientations of F times the sums, one orientation at a time."""
    p = tl.arange(0, PADDED)
    inside = None if EVEN else (p < orientations)[:, None] & (c < channels)[None, :]
    for to in range(0, orientations):
        along = (p * orientations + to)[:, None] * channels + c[None, :]
        f = tl.load(fiber + along, mask=inside, other=None if EVEN else 0.0)
        contracted = tl.sum(summed * f.to(tl.float32), axis=0) / orientations + offset
        where = (node * orientations + to) * channels + c
        tl.store(result + where, contracted.to(result.dtype.element_ty), mask=None if EVEN else c < channels)


@triton.jit
def fiber_conv_fwd_kernel(
    features,  # [N, O, C]
    basis,  # [E, O, B]
    weight,  # [C, B]
    fiber,  # [O, O, C]
    bias,  # [C]
    result,  # [N, O, C]
    sums,  # fp32 [N, O, C]
    others,  # the other end of each edge
    order,  # edges of the first point, of the second ...
    offsets,  # where each point's begin
    orientations,
    channels,
    functions,
    ORDERED: tl.constexpr,  # whether edges come in another order than that of the basis
    FIBER: tl.constexpr,
    BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    EDGES: tl.constexpr,
    PADDED: tl.constexpr,  # orientations
    CHANNELS: tl.constexpr,
    FUNCTIONS: tl.constexpr,
):
    """Sum kernel times features over the edges of one point, for a block of channels, then contract orientations."""
    node = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row, o = tl.arange(0, EDGES * PADDED), tl.arange(0, EDGES * PADDED) % PADDED
    end = tl.load(offsets + node + 1)
    total = tl.zeros((EDGES * PADDED, CHANNELS), tl.float32)
    for first in range(tl.load(offsets + node), end, EDGES):
        place = first + row // PADDED
        real = place < end
        here = real if EVEN else real & (o < orientations)
        edge = tl.load(order + place, mask=real, other=0) if ORDERED else place
        other = tl.load(others + edge, mask=real, other=0)
        at = edge * orientations + o
        kernel = _mix(basis, weight, at, here, c, channels, functions, EVEN, PRECISION, FUNCTIONS)
        inside = here[:, None] if EVEN else here[:, None] & (c < channels)[None, :]
        f = tl.load(features + (other * orientations + o)[:, None] * channels + c[None, :], mask=inside, other=0.0)
        total += kernel * f.to(tl.float32)
    summed = tl.sum(tl.reshape(total, (EDGES, PADDED, CHANNELS)), axis=0)
    p = tl.arange(0, PADDED)
    inside = None if EVEN else (p < orientations)[:, None] & (c < channels)[None, :]
    at = (node * orientations + p)[:, None] * channels + c[None, :]
    offset = _offset(bias, c, channels, BIAS, EVEN)
    if FIBER:
        tl.store(sums + at, summed, mask=inside)
        _contract(result, summed, fiber, offset, node, c, orientations, channels, EVEN, PADDED)
    else:
        tl.store(result + at, (summed + offset[None, :]).to(result.dtype.element_ty), mask=inside)


@triton.jit
def fiber_conv_bwd_basis_kernel(
    grad,  # [N, O, C]
    features,
    weight,
    result,  # [E, O, B]
    senders,
    receivers,
    rows,  # E * O
    orientations,
    channels,
    functions,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    FUNCTIONS: tl.constexpr,
):
    """Multiply the two ends of some edges with the weight."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    b = tl.program_id(1) * FUNCTIONS + tl.arange(0, FUNCTIONS)
    here, edge, o = row < rows, row // orientations, row % orientations
    receiver = tl.load(receivers + edge, mask=here, other=0) * orientations + o
    sender = tl.load(senders + edge, mask=here, other=0) * orientations + o
    total = tl.zeros((ROWS, FUNCTIONS), tl.float32)
    for start in range(0, channels, CHANNELS):
        c = start + tl.arange(0, CHANNELS)
        inside = here[:, None] if EVEN else here[:, None] & (c < channels)[None, :]
        g = tl.load(grad + receiver[:, None] * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
        f = tl.load(features + sender[:, None] * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
        w = _weight_tile(weight, c, b, channels, functions, EVEN)
        total = tl.dot(g * f, w, total, input_precision=PRECISION)
    inside = here[:, None] if EVEN else here[:, None] & (b < functions)[None, :]
    tl.store(result + row[:, None] * functions + b[None, :], total.to(result.dtype.element_ty), mask=inside)


@triton.jit
def fiber_conv_bwd_weight_kernel(
    grad,
    features,
    basis,
    partial,  # fp32 [SPLITS, C, B]
    senders,
    receivers,
    rows,
    orientations,
    channels,
    functions,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    FUNCTIONS: tl.constexpr,
):
    """Add up products of the two ends with the basis over every SPLITS-th block of edges, always in the same order."""
    split, splits = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    b = tl.program_id(2) * FUNCTIONS + tl.arange(0, FUNCTIONS)
    total = tl.zeros((CHANNELS, FUNCTIONS), tl.float32)
    for start in range(split * ROWS, rows, splits * ROWS):
        row = start + tl.arange(0, ROWS)
        here, edge, o = row < rows, row // orientations, row % orientations
        receiver = tl.load(receivers + edge, mask=here, other=0) * orientations + o
        sender = tl.load(senders + edge, mask=here, other=0) * orientations + o
        inside = here[:, None] if EVEN else here[:, None] & (c < channels)[None, :]
        g = tl.load(grad + receiver[:, None] * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
        f = tl.load(features + sender[:, None] * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
        inside = here[:, None] if EVEN else here[:, None] & (b < functions)[None, :]
        phi = tl.load(basis + row[:, None] * functions + b[None, :], mask=inside, other=0.0)
        total = tl.dot(tl.trans(g * f), phi.to(tl.float32), total, input_precision=PRECISION)
    at = split * channels * functions + c[:, None] * functions + b[None, :]
    tl.store(partial + at, total, mask=None if EVEN else (c < channels)[:, None] & (b < functions)[None, :])
