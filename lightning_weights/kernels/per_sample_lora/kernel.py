"""The second half of adapters per sample as a Triton kernel: base + s h Bᵀ, without the update in memory."""

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
from lightning_weights.kernels.per_sample_lora.cost import Config, pick_config

REGISTERS = {32: 128, 64: 96}  # budgets by warp size
# Results of AMD's matrix units leave them in narrow columns.
FULL: dict[str, Any] = {
    "wide_stores": {"gfx942": 0},
    "opcodes": {"sm_80": "HMMA", "sm_90": "HMMA", "sm_100": "HMMA", "gfx942": "v_mfma"},
}


@triton.jit
def per_sample_lora_fwd_kernel(
    base,  # [samples, tokens, outputs]
    inner,  # [samples, tokens, R]: x Aᵀ
    b,  # [samples, outputs, R]
    out,  # like base
    scale,
    tokens,
    outputs,
    R: tl.constexpr,
    EVEN: tl.constexpr,  # tiles are full: R, tokens and outputs are multiples of them
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    """Write base + s h Bᵀ for some tokens and outputs of one sample, the product in fp32."""
    columns = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    sample, rank = tl.program_id(2).to(tl.int64), tl.arange(0, RANK)
    some, wide = (rows < tokens)[:, None], (columns < outputs)[None, :]
    h = tl.load(
        inner + (sample * tokens + rows[:, None]) * R + rank[None, :],
        mask=None if EVEN else some & (rank < R)[None, :],
        other=None if EVEN else 0.0,
    ).to(tl.float32)
    w = tl.load(
        b + (sample * outputs + columns[:, None]) * R + rank[None, :],
        mask=None if EVEN else (columns < outputs)[:, None] & (rank < R)[None, :],
        other=None if EVEN else 0.0,
    ).to(tl.float32)
    at = (sample * tokens + rows[:, None]) * outputs + columns[None, :]
    inside = None if EVEN else some & wide
    result = tl.load(base + at, mask=inside, other=None if EVEN else 0.0).to(tl.float32)
    result += scale * tl.dot(h, tl.trans(w), input_precision=PRECISION)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def launch_expand(base: Tensor, inner: Tensor, b: Tensor, scale: float) -> Tensor:
    """Run the kernel; arguments and result as those of the eager `expand`."""
    base, inner, b = base.contiguous(), inner.contiguous(), b.contiguous()
    out = torch.empty_like(base)
    samples, tokens, outputs = base.shape
    if not out.numel():
        return out
    config = pick_config(tokens, b.shape[-1], WARP_SIZE)
    grid = (triton.cdiv(outputs, config.columns), triton.cdiv(tokens, config.tokens), samples)
    with torch.cuda.device_of(base):
        per_sample_lora_fwd_kernel[grid](
            *(base, inner, b, out, scale, tokens, outputs),
            **_options(config, tokens, outputs, b.shape[-1], base.dtype),
        )
    return out


def _options(config: Config, tokens: int, outputs: int, r: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "R": r,
        "EVEN": r == config.rank and tokens % config.tokens == 0 and outputs % config.columns == 0,
        "PRECISION": "ieee" if exact_products(dtype) else "tf32",
        "TOKENS": config.tokens,
        "COLUMNS": config.columns,
        "RANK": config.rank,
        "num_warps": config.warps,
        "enable_fp_fusion": True,
    }


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: r = 16 and 64 in bf16 on tensor cores, and a ragged one in fp32 without."""
    return [_row(warp_size, *variant) for variant in (("bf16", 16, True), ("bf16", 64, True), ("fp32", 12, False))]


def _row(warp_size: int, name: str, r: int, even: bool) -> Row:
    config = pick_config(1024, r, warp_size)
    size = 2 if name == "bf16" else 4
    tile = config.tokens * config.columns * size
    return Row(
        name=f"{name} r={r}",
        kernel=per_sample_lora_fwd_kernel,
        signature={
            **dict.fromkeys(("base", "inner", "b", "out"), f"*{name}"),
            "scale": "fp32",
            "tokens": "i32",
            "outputs": "i32:16",
        },
        constexprs={
            "R": r,
            "EVEN": even,
            "PRECISION": "tf32" if name == "bf16" else "ieee",
            "TOKENS": config.tokens,
            "COLUMNS": config.columns,
            "RANK": config.rank,
        },
        num_warps=config.warps,
        registers=REGISTERS[warp_size],
        even=even,
        loads=(config.tokens * config.rank * size, config.columns * config.rank * size, tile),
        stores=(tile,),
        **(FULL if even else {}),
        fp_fusion=True,
    )
