"""The transformed group energy and its gradient as Triton kernels: one program per filter."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_weights.kernels._aot import Row
from lightning_weights.kernels._op import WARP_SIZE
from lightning_weights.kernels.transformed_l1.cost import LONGEST_BLOCK, pick_config

TRITON_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
ALIGNMENT = 16  # bytes of the widest load and store
WIDE_GROUP = 16  # columns; 16 bytes in the narrowest dtype, and what the compiler itself looks for
REGISTERS, REGISTERS_ODD = 64, 96  # budgets; 64 lets four programs of 256 threads share a multiprocessor


@triton.jit
def transformed_l1_fwd_kernel(
    weight,  # [rows, columns], contiguous
    keep,  # fp32 [rows], as are the next two
    energies,
    squares,
    groups,
    precision,
    l0,
    a,
    RELEASED: tl.constexpr,
    GROUP: tl.constexpr,  # columns in a group: 16 lets masks be constant over a vector, and accesses be 128 bits wide
    ONCE: tl.constexpr,  # a row is not longer than BLOCK
    BLOCK: tl.constexpr,
):
    """Reduce one filter to its energy, see [`transformed_l1_reference`][]; all arithmetic in fp32."""
    row = tl.program_id(0).to(tl.int64)
    columns = groups * GROUP
    within = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, BLOCK if ONCE else columns, BLOCK):
        offsets = row * columns + start + within
        w = tl.load(weight + offsets, mask=start + within < columns, other=0.0).to(tl.float32)
        sums += w * w
    square = tl.sum(sums)
    expected = tl.load(keep + row) * (0.5 * precision * square + l0 * columns)
    energy = tl.div_rn((a + 1.0) * expected, a - expected if RELEASED else a + expected)
    tl.store(energies + row, energy)
    tl.store(squares + row, square)


@triton.jit
def transformed_l1_bwd_kernel(
    weight,  # [rows, columns], contiguous
    keep,  # fp32 [rows], as are the next three
    squares,
    upstream,
    grad_keep,
    grad_weight,  # like weight
    groups,
    precision,
    l0,
    a,
    RELEASED: tl.constexpr,
    GROUP: tl.constexpr,
    ONCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradients of one filter; all arithmetic in fp32."""
    row = tl.program_id(0).to(tl.int64)
    columns = groups * GROUP
    probability = tl.load(keep + row)
    price = 0.5 * precision * tl.load(squares + row) + l0 * columns
    distance = a - probability * price if RELEASED else a + probability * price
    slope = tl.div_rn(tl.load(upstream + row) * ((a + 1.0) * a), distance * distance)
    tl.store(grad_keep + row, slope * price)
    factor = slope * probability * precision
    within = tl.arange(0, BLOCK)
    for start in range(0, BLOCK if ONCE else columns, BLOCK):
        offsets = row * columns + start + within
        inside = start + within < columns
        w = tl.load(weight + offsets, mask=inside).to(tl.float32)
        tl.store(grad_weight + offsets, (factor * w).to(grad_weight.dtype.element_ty), mask=inside)


def launch_energies(
    weight: Tensor, keep: Tensor, precision: float, l0: float, a: float, released: bool
) -> tuple[Tensor, Tensor]:
    """Run the forward kernel; arguments and results as those of the eager `energies`."""
    weight, keep = weight.contiguous(), keep.contiguous()
    values, squares = torch.empty_like(keep), torch.empty_like(keep)
    group, block, warps = _layout(weight)
    with torch.cuda.device_of(weight):
        transformed_l1_fwd_kernel[(len(weight),)](
            weight,
            keep,
            values,
            squares,
            weight.shape[1] // group,
            precision,
            l0,
            a,
            RELEASED=released,
            GROUP=group,
            ONCE=weight.shape[1] <= block,
            BLOCK=block,
            num_warps=warps,
            enable_fp_fusion=False,
        )
    return values, squares


def launch_gradients(
    weight: Tensor,
    keep: Tensor,
    squares: Tensor,
    upstream: Tensor,
    precision: float,
    l0: float,
    a: float,
    released: bool,
) -> tuple[Tensor, Tensor]:
    """Run the backward kernel; arguments and results as those of the eager `gradients`."""
    weight, keep, squares, upstream = (tensor.contiguous() for tensor in (weight, keep, squares, upstream))
    grad_weight, grad_keep = torch.empty_like(weight), torch.empty_like(keep)
    group, block, warps = _layout(weight)
    with torch.cuda.device_of(weight):
        transformed_l1_bwd_kernel[(len(weight),)](
            weight,
            keep,
            squares,
            upstream,
            grad_keep,
            grad_weight,
            weight.shape[1] // group,
            precision,
            l0,
            a,
            RELEASED=released,
            GROUP=group,
            ONCE=weight.shape[1] <= block,
            BLOCK=block,
            num_warps=warps,
            enable_fp_fusion=False,
        )
    return grad_weight, grad_keep


def _layout(weight: Tensor) -> tuple[int, int, int]:
    """Columns per group, elements per round and warps."""
    wide = weight.shape[1] % WIDE_GROUP == 0 and weight.data_ptr() % ALIGNMENT == 0
    return WIDE_GROUP if wide else 1, *pick_config(weight.shape[1], weight.itemsize, WARP_SIZE)


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: the longest rows of one round in two dtypes and both signs, odd and long rows.

    An odd length ends the width of accesses. The compiler unrolls the rounds of a long row, which multiplies accesses.
    fp16 gives bf16's code but for the conversions.
    """
    variants = [(torch.float32, "", False), (torch.bfloat16, "", False), (torch.float32, " released", True)]
    variants += [(torch.float32, kind, False) for kind in (" odd", " long")]
    rows = []
    for kernel, names, backward in (
        (transformed_l1_fwd_kernel, ("keep", "energies", "squares"), False),
        (transformed_l1_bwd_kernel, ("keep", "squares", "upstream", "grad_keep"), True),
    ):
        for dtype, kind, released in variants:
            block, warps = pick_config(LONGEST_BLOCK + (kind == " long"), dtype.itemsize, warp_size)
            pointers = ("weight", "grad_weight") if backward else ("weight",)
            group = 1 if kind == " odd" else WIDE_GROUP
            moved = (block * dtype.itemsize,)
            rows.append(
                Row(
                    name=f"{TRITON_DTYPES[dtype]}{kind}",
                    kernel=kernel,
                    signature={
                        **dict.fromkeys(pointers, f"*{TRITON_DTYPES[dtype]}"),
                        **dict.fromkeys(names, "*fp32"),
                        "groups": "i32",
                        **dict.fromkeys(("precision", "l0", "a"), "fp32"),
                    },
                    constexprs={"RELEASED": released, "GROUP": group, "ONCE": kind != " long", "BLOCK": block},
                    num_warps=warps,
                    registers=REGISTERS_ODD if kind == " odd" else REGISTERS,
                    even=kind in ("", " released"),
                    loads=moved,
                    stores=moved if backward else (),
                )
            )
    return rows
