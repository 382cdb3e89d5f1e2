"""The projected Adam step as a Triton kernel: a program for a few rows or columns of one matrix."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_moment(moments, absmax_at, code_map, at, inside, CODES: tl.constexpr, EVEN: tl.constexpr):
    """Load a moment, or what its codes stand for; the address of their scales lies at ``absmax_at``."""
    if CODES:
        absmax = tl.load(absmax_at).to(tl.pointer_type(tl.float32))
        code = tl.load(moments + at, mask=inside, other=None if EVEN else 0).to(tl.int32)
        largest = tl.load(absmax + at // 256, mask=inside, other=None if EVEN else 0.0)
        moment = tl.load(code_map + code) * largest
    else:
        moment = tl.load(moments + at, mask=inside, other=None if EVEN else 0.0)
    return moment


@triton.jit
def _encode(
    codes, absmax_at, code_map, values, at, inside, first_block, last_block, SIGNED: tl.constexpr, SHARE: tl.constexpr
):
    """Store values as the nearest codes; SHARE rows of the tile are one block of 256."""
    absmax = tl.load(absmax_at).to(tl.pointer_type(tl.float32))
    OUTER: tl.constexpr = values.shape[0]
    RANK: tl.constexpr = values.shape[1]
    BLOCKS: tl.constexpr = OUTER // SHARE
    largest = tl.max(tl.reshape(tl.abs(values), [BLOCKS, SHARE * RANK]), axis=1)
    block = tl.arange(0, BLOCKS)
    tl.store(absmax + first_block + block, largest, mask=first_block + block < last_block)
    spread = tl.broadcast_to(largest[:, None], [BLOCKS, SHARE * RANK])
    share = tl.reshape(spread, [OUTER, RANK])
    x = tl.where(share > 0, tl.div_rn(values, tl.where(share > 0, share, 1.0)), 0.0)
    below = tl.zeros([OUTER, RANK], tl.int32)
    for step in range(0, 8):
        middle = below + (128 >> step)
        below = tl.where(tl.load(code_map + middle) <= x, middle, below)
    above = tl.minimum(below + 1, 255)
    code = tl.where(x - tl.load(code_map + below) > tl.load(code_map + above) - x, above, below)
    if not SIGNED:
        code = tl.where(values > 0, tl.maximum(code, 1), 0)
    tl.store(codes + at, code.to(tl.uint8), mask=inside)


@triton.jit
def _load_projection(projection, q, i, inner, rank, LEFT: tl.constexpr, EVEN: tl.constexpr):
    at = i[None, :] * rank + q[:, None] if LEFT else q[:, None] * inner + i[None, :]
    inside = None if EVEN else (q < rank)[:, None] & (i < inner)[None, :]
    return tl.load(projection + at, mask=inside, other=None if EVEN else 0.0)


@triton.jit
def _project(
    grad,
    projection,
    o,
    q,
    outer,
    inner,
    rank,
    LEFT: tl.constexpr,
    EVEN: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    RANK: tl.constexpr,
):
    total = tl.zeros([OUTER, RANK], tl.float32)
    for start in range(0, inner, INNER):
        i = start + tl.arange(0, INNER)
        at = i[None, :] * outer + o[:, None] if LEFT else o[:, None] * inner + i[None, :]
        inside = None if EVEN else (o < outer)[:, None] & (i < inner)[None, :]
        d = tl.load(grad + at, mask=inside, other=None if EVEN else 0.0).to(tl.float32)
        p = _load_projection(projection, q, i, inner, rank, LEFT, EVEN)
        total = tl.dot(d, tl.trans(p), total, input_precision="ieee")
    return total


@triton.jit
def _descend(
    param,
    projection,
    n,
    o,
    q,
    outer,
    inner,
    rank,
    step,
    kept,
    LEFT: tl.constexpr,
    EVEN: tl.constexpr,
    INNER: tl.constexpr,
):
    for start in tl.range(0, inner, INNER, num_stages=1):  # stores in a pipeline would be repeated with its loads
        i = start + tl.arange(0, INNER)
        at = i[None, :] * outer + o[:, None] if LEFT else o[:, None] * inner + i[None, :]
        inside = None if EVEN else (o < outer)[:, None] & (i < inner)[None, :]
        p = _load_projection(projection, q, i, inner, rank, LEFT, EVEN)
        w = tl.load(param + at, mask=inside).to(tl.float32)
        w = (w - step * tl.dot(n, p, input_precision="ieee")) * kept
        tl.store(param + at, w.to(param.dtype.element_ty), mask=inside)


@triton.jit
def _read(row, PARAM: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr):
    param = tl.load(row).to(tl.pointer_type(PARAM))
    grad = tl.load(row + 1).to(tl.pointer_type(GRAD))
    projection = tl.load(row + 2).to(tl.pointer_type(tl.float32))
    moments = tl.load(row + 3).to(tl.pointer_type(STATE))
    squares = tl.load(row + 4).to(tl.pointer_type(STATE))
    return param, grad, projection, moments, squares, tl.load(row + 7), tl.load(row + 8)


@triton.jit
def projected_adam_fwd_kernel(
    table,  # int64 [matrices, 9]
    tasks,  # int64 [programs, 2]: matrix, first row or column of it
    signed_map,  # fp32 [256]: what codes stand for
    unsigned_map,
    rank,
    step,  # learning rate with bias correction, times the scale
    beta1,
    beta2,
    eps,
    kept,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    LEFT: tl.constexpr,  # the projection is on the left: tiles are columns of the matrix
    CODES: tl.constexpr,  # moments are 8-bit codes
    EVEN: tl.constexpr,  # tiles and rank end where the matrices do
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    RANK: tl.constexpr,
    SHARE: tl.constexpr,
):
    """Update a few rows or columns of one matrix, see [`projected_adam_reference`][]; all arithmetic in fp32."""
    task = tasks + 2 * tl.program_id(0).to(tl.int64)
    row = table + 9 * tl.load(task)
    param, grad, projection, moments, squares, outer, inner = _read(row, PARAM, GRAD, tl.uint8 if CODES else tl.float32)
    if EVEN:
        param, grad, projection = tl.multiple_of(param, 16), tl.multiple_of(grad, 16), tl.multiple_of(projection, 16)
        moments, squares = tl.multiple_of(moments, 16), tl.multiple_of(squares, 16)
        outer, inner = tl.multiple_of(outer, 16), tl.multiple_of(inner, 16)
    o = tl.multiple_of(tl.load(task + 1), OUTER) + tl.arange(0, OUTER)
    q = tl.arange(0, RANK)
    total = _project(grad, projection, o, q, outer, inner, rank, LEFT, EVEN, OUTER, INNER, RANK)
    along = CODES or not LEFT  # where moments lie, codes always along the projected side
    at = o[:, None] * rank + q[None, :] if along else q[None, :] * outer + o[:, None]
    inside = None if EVEN else (o < outer)[:, None] & (q < rank)[None, :]
    m = _load_moment(moments, row + 5, signed_map, at, inside, CODES, EVEN)
    v = _load_moment(squares, row + 6, unsigned_map, at, inside, CODES, EVEN)
    m = beta1 * m + (1.0 - beta1) * total
    v = beta2 * v + (1.0 - beta2) * total * total
    n = tl.div_rn(m, tl.sqrt_rn(v) + eps)
    if CODES:
        first, last = tl.load(task + 1) // SHARE, (outer + SHARE - 1) // SHARE
        _encode(moments, row + 5, signed_map, m, at, inside, first, last, True, SHARE)
        _encode(squares, row + 6, unsigned_map, v, at, inside, first, last, False, SHARE)
    else:
        tl.store(moments + at, m, mask=inside)
        tl.store(squares + at, v, mask=inside)

    _descend(param, projection, n, o, q, outer, inner, rank, step, kept, LEFT, EVEN, INNER)
