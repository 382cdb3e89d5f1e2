"""One block of columns as a Triton kernel: a program takes a few rows through all columns, grids found on the way."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_weights.kernels._aot import TARGETS, Row
from lightning_weights.kernels._op import WARP_SIZE
from lightning_weights.kernels.compensate_columns.cost import ALIGNED_ROWS, ROWS, Tiles, pick_config
from lightning_weights.kernels.compensate_columns.search_kernels import clamp, search_columns
from lightning_weights.kernels.statsq.row_kernels import round_to_even

REGISTERS = 144  # budget; fourteen programs of one warp share a multiprocessor


@triton.jit
def _load_grid(scale, zero, group, row, inside, rows):
    at = group.to(tl.int64) * rows + row
    return tl.load(scale + at, mask=inside), tl.load(zero + at, mask=inside)


@triton.jit
def _find_grids(
    weight, scale, zero, block, columns, start, search, row, inside, rows, top, GRID: tl.constexpr, CLIP: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Store the grids of all groups that begin in the block."""
    for first in range((search - start % search) % search, block, search):
        end = tl.minimum(first + search, columns)
        s, z = search_columns(weight, first, end, row, inside, rows, top, GRID, CLIP, GROUP)
        to = ((start + first) // search).to(tl.int64) * rows + row
        tl.store(scale + to, s, mask=inside)
        tl.store(zero + to, z, mask=inside)
    tl.debug_barrier()  # other threads of the program read what these have written


@triton.jit
def _take(tile, column, q):
    return tl.sum(tl.where((column == q)[:, None], tile, 0.0), axis=0)


@triton.jit
def _push(tile, coefficients, pushes, column, q, block):
    """Add to all later columns; earlier ones are not needed any more."""
    c = tl.load(coefficients + column, mask=(column > q) & (column < block), other=0.0)
    return tile + pushes[None, :] * c[:, None]


@triton.jit(do_not_specialize=["block", "columns", "start", "search", "line", "pair"])
def compensate_columns_fwd_kernel(
    weight, original, coefficients, diagonal, scale, zero, groups, codes, pushed, loss, block, rows, columns, start,
    search, line, pair, top, cae, blend, pull,
    GRID: tl.constexpr, CLIP: tl.constexpr, SEARCH: tl.constexpr, PAIRS: tl.constexpr, ORIGINAL: tl.constexpr,
    PULL: tl.constexpr, OUTER: tl.constexpr, LAST: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr,
    GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Quantize a block for ROWS rows, see [`compensate_columns_reference`][], whose order of operations it keeps.

    ``weight`` has ``columns`` columns from the block's first one on; ``line`` and ``pair`` are strides of the
    coefficients, ``top`` is the largest code. EVEN says that there are no rows to mask.
    """
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = None if EVEN else row < rows
    if SEARCH:
        _find_grids(weight, scale, zero, block, columns, start, search, row, inside, rows, top, GRID, CLIP, GROUP)
    if LAST:
        s, z = _load_grid(scale, zero, tl.load(groups + block - 1), row, inside, rows)
        low, high = -z * s, (top - z) * s
    at = column.to(tl.int64)[:, None] * rows + row[None, :]
    here = (column < block)[:, None] if EVEN else (column < block)[:, None] & (row < rows)[None, :]
    tile = tl.load(weight + at, mask=here, other=0.0)
    if PULL == "all":
        tile_0 = tl.load(original + at, mask=here, other=0.0)
    total, own = tl.zeros([ROWS], tl.float32), row
    for q in range(block):
        s, z = _load_grid(scale, zero, tl.load(groups + q), row, inside, rows)
        w = _take(tile, column, q)
        w_0 = w
        if ORIGINAL:
            w_0 = _take(tile_0, column, q) if PULL == "all" else tl.load(original + own, mask=inside)
        if PULL == "next":
            w = tl.where(q > 0, w - pull * (w - w_0), w)
        code = clamp(round_to_even(tl.div_rn(w, s)) + z, 0.0, top)
        near = s * (code - z)
        error = (w - near) - cae * (w - w_0)
        tile = _push(tile, coefficients + q * line, error, column, q, block)
        if PAIRS == 2:
            tile = _push(tile, coefficients + q * line + pair, w + blend * (w_0 - w), column, q, block)
        if PULL == "all":
            tile -= pull * (tile - tile_0)
        if not LAST:
            low, high = -z * s, (top - z) * s
        told = near if OUTER == "quantized" else clamp(w, low, high) if OUTER == "clamped" else w
        tl.store(codes + own, code.to(tl.uint8), mask=inside)
        to = pushed + (own - row) * PAIRS + row
        tl.store(to, (w - near) - cae * (told - w_0), mask=inside)
        if PAIRS == 2:
            tl.store(to + rows, w - error if OUTER == "leftover" else told + blend * (w_0 - told), mask=inside)
        share = error * (1.0 / tl.load(diagonal + q))
        total += 0.5 * (share * share)
        own += rows
    tl.store(loss + row, total, mask=inside)


def launch_compensate_columns(
    weight: Tensor,
    original: Tensor | None,
    coefficients: Tensor,
    diagonal: Tensor,
    scale: Tensor,
    zero: Tensor,
    groups: Tensor,
    *,
    bits: int,
    grid: str,
    clip: bool,
    search: int,
    start: int,
    cae: float,
    blend: float,
    pull: float,
    pull_all: bool,
    outer: str,
    block_last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernel over one block; arguments and results as those of the operator."""
    (columns, rows), (block, pairs, _) = weight.shape, coefficients.shape
    codes = weight.new_empty((block, rows), dtype=torch.uint8)
    pushed, loss = weight.new_empty((block, pairs, rows)), weight.new_zeros(rows)
    if block == 0 or rows == 0:
        return codes, pushed, loss
    weight, diagonal, groups = weight.contiguous(), diagonal.contiguous(), groups.contiguous()
    table = coefficients if coefficients.stride(2) == 1 else coefficients.contiguous()
    found = scale.contiguous(), zero.contiguous()
    trained = original.contiguous() if original is not None and (cae or blend or pull) else None
    tiles = pick_config(block, search, WARP_SIZE, pull_all=pull_all and pull != 0.0)
    with torch.cuda.device_of(weight):
        compensate_columns_fwd_kernel[(triton.cdiv(rows, ROWS),)](
            weight, weight if trained is None else trained, table, diagonal, *found, groups, codes, pushed, loss,
            block, rows, columns, start, search, table.stride(0), table.stride(1), 2.0**bits - 1, cae, blend, pull,
            **_constants(grid, clip, search, pairs, trained is not None, pull, pull_all, outer, block_last),
            **_shape(tiles), EVEN=rows % ALIGNED_ROWS == 0, num_warps=tiles.warps,
            enable_fp_fusion=False,  # sums are rounded like the reference's, so that codes are the same
        )  # fmt: skip
    for tensor, new in zip((scale, zero), found, strict=True):
        if new is not tensor:
            tensor.copy_(new)
    return codes, pushed, loss


def _constants(
    grid: str,
    clip: bool,
    search: int,
    pairs: int,
    original: bool,
    pull: float,
    pull_all: bool,
    outer: str,
    block_last: bool,
) -> dict[str, Any]:
    """Return compile-time arguments; what makes no difference is always the same, since every variant is compiled."""
    outer = outer if original or pairs == 2 else "current"
    return {
        "GRID": grid if search else "",
        "CLIP": clip and search > 0,
        "SEARCH": search > 0,
        "PAIRS": pairs,
        "ORIGINAL": original,
        "PULL": ("all" if pull_all else "next") if pull else "",
        "OUTER": outer,
        "LAST": outer == "clamped" and block_last,
    }


def _shape(tiles: Tiles) -> dict[str, int]:
    return {"ROWS": ROWS, "GROUP": tiles.group, "BLOCK": tiles.block}


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: the usual one, the two that hold most, and a tail."""
    return [
        _row(warp_size, "usual", 128, _constants("asymmetric", False, 128, 1, False, 0.0, False, "current", False)),
        _row(warp_size, "clip, last", 128, _constants("quarot", True, 128, 2, True, 0.0, False, "clamped", True)),
        _row(warp_size, "pull all", 256, _constants("gptq", False, 0, 2, True, 0.1, True, "quantized", False)),
        _row(warp_size, "clip, pull", 128, _constants("gptq", True, 32, 2, True, 0.1, False, "leftover", False), False),
    ]


def _row(warp_size: int, name: str, block: int, constants: dict[str, Any], even: bool = True) -> Row:
    pull_all = constants["PULL"] == "all"
    tiles = pick_config(block, block if constants["SEARCH"] else 0, warp_size, pull_all=pull_all)
    tensors = ("weight", "original", "coefficients", "diagonal", "scale", "zero", "pushed", "loss")
    vector, searches = 4 * ROWS, constants["SEARCH"] * (2 + constants["CLIP"])
    own = 2 + 2 * constants["LAST"] + (constants["ORIGINAL"] and not pull_all)
    loads = [vector * tiles.block] * (1 + pull_all) + [vector * tiles.group] * searches
    loads += [vector] * own
    wide = sum(max(1, moved // (16 * tiles.warps * warp_size)) for moved in loads)
    return Row(
        name=name,
        kernel=compensate_columns_fwd_kernel,
        signature={
            **dict.fromkeys(tensors, "*fp32"),
            **{"groups": "*i32", "codes": "*u8", "rows": "i32:16" if even else "i32"},
            **dict.fromkeys(("block", "columns", "start", "search", "line", "pair"), "i32"),
            **dict.fromkeys(("top", "cae", "blend", "pull"), "fp32"),
        },
        constexprs={**constants, **_shape(tiles), "EVEN": even},
        num_warps=tiles.warps,
        registers=REGISTERS,
        even=even,
        loads=(*loads, *[4 * tiles.block] * constants["PAIRS"]),
        stores=(ROWS, *[vector] * (1 + constants["PAIRS"] + 2 * constants["SEARCH"])),
        wide_loads=dict.fromkeys(TARGETS, wide),  # of coefficients only those above the diagonal are loaded
    )
