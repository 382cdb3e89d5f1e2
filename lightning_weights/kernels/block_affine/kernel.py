"""The block-affine weight and its gradient as Triton kernels: programs that share a block of the adapter."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_weights.kernels._aot import Row
from lightning_weights.kernels._op import WARP_SIZE, exact_products
from lightning_weights.kernels.block_affine.cost import Config, pick_config

REGISTERS = {32: 96, 64: 264}  # budgets by warp size; AMD's compiler spreads B over the registers of every wave
STAGES = 2  # of software pipelining: the next tiles are on their way while these are multiplied
PIECE = 1 << 24  # elements of the built weight's gradient that are in memory at once
# The last stages of a pipeline repeat the loop's loads. Results of AMD's matrix units leave them in narrow columns.
FORWARD: dict[str, Any] = {
    "wide_loads": {"sm_80": 8, "sm_90": 8, "sm_100": 8, "gfx942": 10},
    "wide_stores": {"gfx942": 0},
    "opcodes": {"sm_80": "HMMA", "sm_90": "HMMA", "sm_100": "HMMA", "gfx942": "v_mfma"},
}
BACKWARD: dict[str, Any] = {
    "wide_loads": {"sm_80": 4, "sm_90": 4, "sm_100": 6, "gfx942": 4},
    "opcodes": {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"},
}


@triton.jit
def block_affine_fwd_kernel(
    weight,  # [blocks_out * R, blocks_in * R], as is built
    block,  # fp32 [grid_out, grid_in, R, R]
    built,
    blocks_out,
    blocks_in,
    grid_out,
    grid_in,
    in_features,  # blocks_in * R, of which the compiler sees that it is a multiple of 16
    R: tl.constexpr,
    OFFSET: tl.constexpr,  # whether B is added
    EVEN: tl.constexpr,  # R fills the tile
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,  # of a block that are multiplied at once
    TILE: tl.constexpr,
):
    """Write W + WB + B for every SPLITS-th block of the weight that one block B of the grid belongs to.

    Programs write disjoint blocks. I + B is never rounded: the product is added to the weight in fp32.
    """
    own, split, splits = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.num_programs(1)
    row, column = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :]
    b = tl.load(
        block + own * R * R + row * R + column,
        mask=None if EVEN else (row < R) & (column < R),
        other=None if EVEN else 0.0,
    )
    down, across = own // grid_in, own % grid_in
    columns = (blocks_in - across + grid_in - 1) // grid_in
    pieces: tl.constexpr = TILE // ROWS
    for piece in range(split, (blocks_out - down + grid_out - 1) // grid_out * columns * pieces, splits):
        user = piece // pieces
        first = (down + user // columns * grid_out) * R * in_features + (across + user % columns * grid_in) * R
        some = piece % pieces * ROWS + tl.arange(0, ROWS)[:, None]
        inside = None if EVEN else (some < R) & (column < R)
        at = first + some * in_features + column
        w = tl.load(weight + at, mask=inside, other=None if EVEN else 0.0).to(tl.float32)
        result = w + tl.dot(w, b, input_precision=PRECISION)
        if OFFSET:
            result += tl.load(block + own * R * R + some * R + column, mask=inside, other=None if EVEN else 0.0)
        tl.store(built + at, result.to(built.dtype.element_ty), mask=inside)


@triton.jit
def block_affine_bwd_kernel(
    weight,  # some block rows of it: [blocks_out * R, blocks_in * R]
    grad,  # like weight
    partial,  # fp32 [grid_out * grid_in, SPLITS, R, R]
    blocks_out,
    blocks_in,
    grid_out,
    grid_in,
    in_features,
    skipped,  # block rows in front of them
    R: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Sum (W + I)ᵀ dW' over every SPLITS-th block that one block of the grid belongs to, in fp32.

    Programs write disjoint sums, which are added up afterwards, always in the same order.
    """
    own, split, splits = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.num_programs(1)
    column = tl.arange(0, TILE)[None, :]
    down, across = (own // grid_in + grid_out - skipped % grid_out) % grid_out, own % grid_in
    columns = (blocks_in - across + grid_in - 1) // grid_in
    pieces: tl.constexpr = TILE // ROWS
    sums = tl.zeros((TILE, TILE), tl.float32)
    for piece in range(split, (blocks_out - down + grid_out - 1) // grid_out * columns * pieces, splits):
        user = piece // pieces
        first = (down + user // columns * grid_out) * R * in_features + (across + user % columns * grid_in) * R
        inner = piece % pieces * ROWS + tl.arange(0, ROWS)[:, None]
        valid = None if EVEN else (inner < R) & (column < R)
        at = first + inner * in_features + column
        w = tl.load(weight + at, mask=valid, other=None if EVEN else 0.0).to(tl.float32)
        g = tl.load(grad + at, mask=valid, other=None if EVEN else 0.0).to(tl.float32)
        w += (inner == column).to(tl.float32)
        sums = tl.dot(tl.trans(w), g, sums, input_precision=PRECISION)
    row = tl.arange(0, TILE)[:, None]
    inside = None if EVEN else (row < R) & (column < R)
    tl.store(partial + (own * splits + split) * R * R + row * R + column, sums, mask=inside)


def launch_build(weight: Tensor, block: Tensor, dtype: torch.dtype, offset: bool) -> Tensor:
    """Run the forward kernel; arguments and result as those of the eager `build`."""
    weight, block = weight.contiguous(), block.contiguous()
    built = torch.empty_like(weight, dtype=dtype)
    r, grid = block.shape[-1], (block.shape[0], block.shape[1])
    blocks = (weight.shape[0] // r, weight.shape[1] // r)
    config = pick_config(blocks, grid, r, WARP_SIZE)
    with torch.cuda.device_of(weight):
        block_affine_fwd_kernel[grid[0] * grid[1], config.splits](
            *(weight, block, built, *blocks, *grid, weight.shape[1]), OFFSET=offset, **_options(config, r, weight.dtype)
        )
    return built


def launch_gradient(
    grad: Tensor, tokens: Tensor | None, weight: Tensor, shape: list[int], dtype: torch.dtype
) -> Tensor:
    """Run the backward kernel; arguments and result as those of the eager `gradient`.

    The gradient of the built weight is a product of the vendor's library, some block rows at a time.
    """
    weight, r, grid = weight.contiguous(), shape[-1], (shape[0], shape[1])
    blocks = (weight.shape[0] // r, weight.shape[1] // r)
    config = pick_config(blocks, grid, r, WARP_SIZE)
    total = torch.zeros(shape, dtype=torch.float32, device=weight.device)
    step = blocks[0] if tokens is None else max(1, PIECE // (r * weight.shape[1]))
    for start in range(0, blocks[0], step):
        rows = slice(start * r, min(blocks[0], start + step) * r)
        some = weight[rows]
        slope = grad.contiguous()
        if tokens is not None:  # not cast by autocast, as it would be without out=
            slope = torch.mm(grad[:, rows].t(), tokens, out=torch.empty_like(some, dtype=grad.dtype))
        partial = total.new_empty((grid[0] * grid[1], config.splits, r, r))
        with torch.cuda.device_of(weight):
            block_affine_bwd_kernel[grid[0] * grid[1], config.splits](
                *(some, slope, partial, len(some) // r, blocks[1], *grid, weight.shape[1], start),
                **_options(config, r, weight.dtype),
            )
        total += partial.sum(1).view(shape)
    return total.to(dtype)


def _options(config: Config, r: int, dtype: torch.dtype) -> dict[str, Any]:
    # TF32 holds weights in half precision exactly; those in fp32 only where PyTorch may use it for its own products.
    exact = exact_products(dtype)
    return {
        "R": r,
        "EVEN": config.tile == r,
        "PRECISION": "ieee" if exact else "tf32",
        "ROWS": config.rows,
        "TILE": config.tile,
        "num_warps": config.warps,
        "num_stages": STAGES,
        "enable_fp_fusion": True,
    }


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: the paper's r = 64 in bf16 on tensor cores, and a ragged r in fp32 without."""
    return [
        _row(kernel, warp_size, name, r)
        for kernel in (block_affine_fwd_kernel, block_affine_bwd_kernel)
        for name, r in (("bf16", 64), ("fp32", 48))
    ]


def _row(kernel: Any, warp_size: int, name: str, r: int) -> Row:
    even, forward = name == "bf16", kernel is block_affine_fwd_kernel
    config = pick_config((64, 64), (64, 1), r, warp_size)
    moved, some = (config.rows * config.tile * size for size in (2 if even else 4, 4))
    whole = 4 * config.tile**2
    pointers = ("weight", "built", "grad")
    return Row(
        name=f"{name} r={r}",
        kernel=kernel,
        signature={
            **{pointer: f"*{name}" for pointer in pointers if pointer in kernel.arg_names},
            **{pointer: "*fp32" for pointer in ("block", "partial") if pointer in kernel.arg_names},
            **dict.fromkeys(("blocks_out", "blocks_in", "grid_out", "grid_in"), "i32"),
            "in_features": "i32:16",
            **({} if forward else {"skipped": "i32"}),
        },
        constexprs={
            **({"OFFSET": True} if forward else {}),
            **{"R": r, "EVEN": even, "PRECISION": "tf32" if even else "ieee", "ROWS": config.rows, "TILE": config.tile},
        },
        num_warps=config.warps,
        registers=REGISTERS[warp_size],
        even=even,
        loads=(whole, moved, some) if forward else (moved, moved),
        stores=(moved,) if forward else (whole,),
        **((FORWARD if forward else BACKWARD) if even else {}),
        num_stages=STAGES,
        fp_fusion=True,
    )
