"""Mixing and its gradients as Triton kernels: a program takes one tile of every template of one set."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightning_weights.kernels._aot import Row
from lightning_weights.kernels.mix_templates.cost import pick_config

TRITON_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
WIDE_GROUP = 16  # columns; 16 bytes in the narrowest dtype, and what the compiler itself looks for
REGISTERS = 64  # budget: eight programs of 128 threads share a multiprocessor
# where AMD's compiler lets both branches, one for each set, share their ends
MERGED_LOADS, MERGED_STORES = {"gfx942": 11}, {"gfx942": 2}
NOWHERE = -1  # the second block of a set that has only one


@triton.jit
def _tile(rows, groups, tiles, GROUP: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Return this program's rows and columns of a template, their row length, and which of them exist."""
    row = (tl.program_id(0) // tiles * DOWN + tl.arange(0, DOWN))[:, None]
    column = (tl.program_id(0) % tiles * ACROSS + tl.arange(0, ACROSS))[None, :]
    length = groups * GROUP
    return row, column, length, (row < rows) & (column < length)


@triton.jit
def _places(row, column, rows, length, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """Return where a tile of a template lies in the weight, in one of its blocks."""
    down = (BLOCK // COLUMNS) * rows + row
    return down.to(tl.int64) * (length * COLUMNS) + (BLOCK % COLUMNS) * length + column


@triton.jit
def _mix(
    templates,
    weight,
    coefficients,
    rows,
    groups,
    tiles,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    COLUMNS: tl.constexpr,
    COUNT: tl.constexpr,
    GROUP: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    row, column, length, inside = _tile(rows, groups, tiles, GROUP, DOWN, ACROSS)
    one = tl.zeros([DOWN, ACROSS], tl.float32)
    two = tl.zeros([DOWN, ACROSS], tl.float32)
    for t in tl.static_range(COUNT):
        offsets = (t * rows + row).to(tl.int64) * length + column
        template = tl.load(templates + offsets, mask=inside, other=0.0).to(tl.float32)
        one += tl.load(coefficients + FIRST * COUNT + t) * template
        if SECOND >= 0:
            two += tl.load(coefficients + SECOND * COUNT + t) * template
    kind = weight.dtype.element_ty
    tl.store(weight + _places(row, column, rows, length, FIRST, COLUMNS), one.to(kind), mask=inside)
    if SECOND >= 0:
        tl.store(weight + _places(row, column, rows, length, SECOND, COLUMNS), two.to(kind), mask=inside)


@triton.jit
def mix_templates_fwd_kernel(
    first,  # [K, rows, length], contiguous, as is the next
    second,
    weight,  # [rows * blocks / columns, length * columns]
    coefficients,  # fp32 [blocks, K]
    rows,
    groups,
    tiles,  # beside each other
    FIRST_A: tl.constexpr,  # blocks of the first set
    SECOND_A: tl.constexpr,
    FIRST_B: tl.constexpr,  # blocks of the second set
    SECOND_B: tl.constexpr,
    COLUMNS: tl.constexpr,
    COUNT: tl.constexpr,
    GROUP: tl.constexpr,  # columns in a group: 16 lets masks be constant over a vector, and accesses be 128 bits wide
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """Mix one tile of the blocks of one set, see [`mix_templates_reference`][]; all arithmetic in fp32."""
    if tl.program_id(1) == 0:
        _mix(first, weight, coefficients, rows, groups, tiles, FIRST_A, SECOND_A, COLUMNS, COUNT, GROUP, DOWN, ACROSS)
    elif FIRST_B >= 0:
        _mix(second, weight, coefficients, rows, groups, tiles, FIRST_B, SECOND_B, COLUMNS, COUNT, GROUP, DOWN, ACROSS)


@triton.jit
def _unmix(
    templates,
    grads,
    upstream,
    coefficients,
    partial,
    rows,
    groups,
    tiles,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    COLUMNS: tl.constexpr,
    COUNT: tl.constexpr,
    SUMS: tl.constexpr,
    GROUP: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    row, column, length, inside = _tile(rows, groups, tiles, GROUP, DOWN, ACROSS)
    programs = tl.num_programs(0)
    one = tl.load(upstream + _places(row, column, rows, length, FIRST, COLUMNS), mask=inside, other=0.0)
    one = one.to(tl.float32)
    if SECOND >= 0:
        two = tl.load(upstream + _places(row, column, rows, length, SECOND, COLUMNS), mask=inside, other=0.0)
        two = two.to(tl.float32)
    for t in tl.static_range(COUNT):
        grad = tl.load(coefficients + FIRST * COUNT + t) * one
        if SECOND >= 0:
            grad += tl.load(coefficients + SECOND * COUNT + t) * two
        offsets = (t * rows + row).to(tl.int64) * length + column
        tl.store(grads + offsets, grad.to(grads.dtype.element_ty), mask=inside)
        if SUMS:
            template = tl.load(templates + offsets, mask=inside, other=0.0).to(tl.float32)
            tl.store(partial + (FIRST * COUNT + t) * programs + tl.program_id(0), tl.sum(one * template))
            if SECOND >= 0:
                tl.store(partial + (SECOND * COUNT + t) * programs + tl.program_id(0), tl.sum(two * template))


@triton.jit
def mix_templates_bwd_kernel(
    first,  # [K, rows, length], contiguous, as are the next three
    second,
    grad_first,
    grad_second,
    upstream,  # [rows * blocks / columns, length * columns]
    coefficients,  # fp32 [blocks, K]
    partial,  # fp32 [blocks * K, programs]
    rows,
    groups,
    tiles,  # beside each other
    FIRST_A: tl.constexpr,  # blocks of the first set
    SECOND_A: tl.constexpr,
    FIRST_B: tl.constexpr,  # blocks of the second set
    SECOND_B: tl.constexpr,
    COLUMNS: tl.constexpr,
    COUNT: tl.constexpr,
    SUMS: tl.constexpr,
    GROUP: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """Write the gradients of one tile of one set's templates, and this tile's part of the sums; all in fp32."""
    if tl.program_id(1) == 0:
        _unmix(
            first, grad_first, upstream, coefficients, partial, rows, groups, tiles,
            FIRST_A, SECOND_A, COLUMNS, COUNT, SUMS, GROUP, DOWN, ACROSS,
        )  # fmt: skip
    elif FIRST_B >= 0:
        _unmix(
            second, grad_second, upstream, coefficients, partial, rows, groups, tiles,
            FIRST_B, SECOND_B, COLUMNS, COUNT, SUMS, GROUP, DOWN, ACROSS,
        )  # fmt: skip


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: both directions with two and with four templates, in two dtypes."""
    down, across, warps = pick_config(1 << 10, 1 << 12, warp_size)
    rows = []
    for templates, weights, count, backward in (
        (torch.float32, torch.float32, 2, False),
        (torch.float32, torch.bfloat16, 4, False),
        (torch.float32, torch.float32, 2, True),
        (torch.bfloat16, torch.bfloat16, 4, True),
    ):
        template, weight = (down * across * kind.itemsize for kind in (templates, weights))
        mixed = ("first", "second", *(("grad_first", "grad_second") if backward else ()))
        # one branch for each set; each has a load per template, and one per block where gradients come in
        blocks = (weight,) * 4
        rows.append(
            Row(
                name=f"{TRITON_DTYPES[templates]} to {TRITON_DTYPES[weights]} K={count}{' sums' if backward else ''}",
                kernel=mix_templates_bwd_kernel if backward else mix_templates_fwd_kernel,
                signature={
                    **dict.fromkeys(mixed, f"*{TRITON_DTYPES[templates]}"),
                    "upstream" if backward else "weight": f"*{TRITON_DTYPES[weights]}",
                    **dict.fromkeys(("coefficients", *(("partial",) if backward else ())), "*fp32"),
                    **dict.fromkeys(("rows", "groups", "tiles"), "i32"),
                },
                constexprs={
                    **{"FIRST_A": 0, "SECOND_A": 1, "FIRST_B": 2, "SECOND_B": 3, "COLUMNS": 2, "COUNT": count},
                    **({"SUMS": True} if backward else {}),
                    **{"GROUP": WIDE_GROUP, "DOWN": down, "ACROSS": across},
                },
                num_warps=warps,
                registers=REGISTERS,
                even=True,
                loads=(template,) * (2 * count) + (blocks if backward else ()),
                stores=(template,) * (2 * count) if backward else blocks,
                wide_loads={} if backward or count == 2 else MERGED_LOADS,
                wide_stores={} if backward or count == 2 else MERGED_STORES,
            )
        )
    return rows
