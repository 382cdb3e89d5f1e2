"""Companding and its gradients as Triton kernels: programs take blocks of rows that share a scale and a width."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_weights.kernels._aot import Row
from lightning_weights.kernels._op import WARP_SIZE
from lightning_weights.kernels.compand.cost import pick_config

TRITON_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
ALIGNMENT = 16  # bytes of the widest load and store
WIDE_GROUP = 16  # columns; 16 bytes in the narrowest dtype, and what the compiler itself looks for
REGISTERS = 64  # budget: eight programs of 128 threads share a multiprocessor


@triton.jit
def _atan(smaller, larger):
    """Arctan of a quotient in [0, 1]: an odd polynomial, its largest relative error in exact arithmetic 1.5e-8."""
    q = smaller / larger
    z = q * q
    p = 0.00284992417
    p = p * z - 0.016068776
    p = p * z + 0.0426917768
    p = p * z - 0.0750431846
    p = p * z + 0.106409467
    p = p * z - 0.142036483
    p = p * z + 0.1999262
    p = p * z - 0.333330734
    p = p * z + 0.999999985
    return q * p, q


@triton.jit
def _tanh(r):
    """Hyperbolic tangent of r >= 0: near zero, where the exponentials cancel, an odd polynomial."""
    z = r * r
    p = -0.00566001124
    p = p * z + 0.0205910123
    p = p * z - 0.0537210775
    p = p * z + 0.133311277
    p = p * z - 0.333332605
    p = p * z + 0.999999996
    return tl.where(r < 0.625, r * p, 1.0 - 2.0 / (1.0 + tl.exp(2.0 * r)))


@triton.jit
def _unit_and_slope(v, b, FUNCTION: tl.constexpr):
    """f(|v| / b) and f'(v / b), without overflow for any finite v; comparisons are false for NaN, which goes on."""
    size = tl.abs(v)
    if FUNCTION == "arctan":
        inner = size <= b
        angle, q = _atan(tl.where(inner, size, b), tl.where(inner, b, size))
        unit = tl.where(inner, angle, 1.5707963267948966 - angle)
        slope = tl.where(inner, 1.0, q * q) / (1.0 + q * q)
    elif FUNCTION == "tanh":
        unit = _tanh(size / b)
        slope = 1.0 - unit * unit
    else:
        share = b / (b + size)
        unit = size / (b + size)
        slope = share * share
    return unit, slope


@triton.jit
def compand_fwd_kernel(
    latent,  # [rows, columns], contiguous, as is the next
    weight,
    a,  # fp32 [rows], as is the next
    b,
    groups,
    blocks,  # per row
    FUNCTION: tl.constexpr,
    GROUP: tl.constexpr,  # columns in a group: 16 lets masks be constant over a vector, and accesses be 128 bits wide
    BLOCK: tl.constexpr,
):
    """Compand one block of one row, see [`compand_reference`][]; all arithmetic in fp32."""
    row = tl.program_id(0) // blocks
    within = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    columns = groups * GROUP
    inside = within < columns
    offsets = row.to(tl.int64) * columns + within
    v = tl.load(latent + offsets, mask=inside, other=0.0).to(tl.float32)
    unit, _ = _unit_and_slope(v, tl.load(b + row), FUNCTION)
    w = tl.load(a + row) * tl.where(v < 0.0, -unit, unit)
    tl.store(weight + offsets, w.to(weight.dtype.element_ty), mask=inside)


@triton.jit
def compand_bwd_kernel(
    latent,  # [rows, columns], contiguous, as are the next two
    upstream,
    grad_latent,
    a,  # fp32 [rows], as is the next
    b,
    partial_a,  # fp32 [rows, blocks], as is the next
    partial_b,
    groups,
    blocks,  # per row
    FUNCTION: tl.constexpr,
    SUMS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradients of one block of one row, and this block's part of the sums; all arithmetic in fp32."""
    row = tl.program_id(0) // blocks
    within = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    columns = groups * GROUP
    inside = within < columns
    offsets = row.to(tl.int64) * columns + within
    v = tl.load(latent + offsets, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(upstream + offsets, mask=inside, other=0.0).to(tl.float32)
    width = tl.load(b + row)
    unit, slope = _unit_and_slope(v, width, FUNCTION)
    grad = tl.load(a + row) / width * slope * g
    tl.store(grad_latent + offsets, grad.to(grad_latent.dtype.element_ty), mask=inside)
    if SUMS:
        tl.store(partial_a + tl.program_id(0), tl.sum(g * tl.where(v < 0.0, -unit, unit)))
        tl.store(partial_b + tl.program_id(0), -tl.sum(grad * v) / width)


def launch_weights(latent: Tensor, a: Tensor, b: Tensor, function: str) -> Tensor:
    """Run the forward kernel; arguments and result as those of the eager `weights`."""
    weight = torch.empty_like(latent)
    group, block, blocks, warps = _layout(latent)
    with torch.cuda.device_of(latent):
        compand_fwd_kernel[(len(latent) * blocks,)](
            latent,
            weight,
            a,
            b,
            latent.shape[1] // group,
            blocks,
            FUNCTION=function,
            GROUP=group,
            BLOCK=block,
            num_warps=warps,
        )
    return weight


def launch_gradients(
    latent: Tensor, a: Tensor, b: Tensor, upstream: Tensor, function: str, sums: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the backward kernel; arguments and results as those of the eager `gradients`.

    The sums have two stages, both in a fixed order: programs sum their blocks, PyTorch sums the programs of a row.
    """
    grad_latent = torch.empty_like(latent)
    group, block, blocks, warps = _layout(latent)
    partial = a.new_empty(2, len(latent), blocks) if sums else a.new_zeros(2, len(latent), 1)
    with torch.cuda.device_of(latent):
        compand_bwd_kernel[(len(latent) * blocks,)](
            latent,
            upstream,
            grad_latent,
            a,
            b,
            partial[0],
            partial[1],
            latent.shape[1] // group,
            blocks,
            FUNCTION=function,
            SUMS=sums,
            GROUP=group,
            BLOCK=block,
            num_warps=warps,
        )
    return grad_latent, partial[0].sum(1), partial[1].sum(1)


def _layout(latent: Tensor) -> tuple[int, int, int, int]:
    """Columns per group, elements per program, programs per row and warps."""
    columns = latent.shape[1]
    wide = columns % WIDE_GROUP == 0 and latent.data_ptr() % ALIGNMENT == 0
    block, warps = pick_config(columns, WARP_SIZE)
    return WIDE_GROUP if wide else 1, block, -(-columns // block), warps


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: both directions in two dtypes, and every function."""
    block, warps = pick_config(1 << 20, warp_size)
    rows = []
    for dtype, function, backward in (
        (torch.float32, "arctan", False),
        (torch.bfloat16, "tanh", False),
        (torch.float32, "softsign", True),
        (torch.bfloat16, "arctan", True),
    ):
        pointers = ("latent", "upstream", "grad_latent") if backward else ("latent", "weight")
        numbers = ("a", "b", "partial_a", "partial_b") if backward else ("a", "b")
        moved = (block * dtype.itemsize,)
        rows.append(
            Row(
                name=f"{TRITON_DTYPES[dtype]} {function}{' sums' if backward else ''}",
                kernel=compand_bwd_kernel if backward else compand_fwd_kernel,
                signature={
                    **dict.fromkeys(pointers, f"*{TRITON_DTYPES[dtype]}"),
                    **dict.fromkeys(numbers, "*fp32"),
                    **dict.fromkeys(("groups", "blocks"), "i32"),
                },
                constexprs={
                    "FUNCTION": function,
                    **({"SUMS": True} if backward else {}),
                    "GROUP": WIDE_GROUP,
                    "BLOCK": block,
                },
                num_warps=warps,
                registers=REGISTERS,
                even=True,
                loads=moved * (2 if backward else 1),
                stores=moved,
                fp_fusion=True,
            )
        )
    return rows
