"""Weights plus packed signatures as a Triton kernel: one launch for full blocks of all tensors, one for their tails."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_weights.kernels._aot import Row
from lightning_weights.kernels._launch_tables import address_table, task_tables
from lightning_weights.kernels._op import WARP_SIZE
from lightning_weights.kernels.apply_signature.cost import pick_config
from lightning_weights.kernels.apply_signature.reference import GROUP

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
ALIGNMENT = 16  # bytes of the widest access
REGISTERS = 128


@triton.jit
def _values(
    codes,
    grid,
    first,
    count,
    BITS: tl.constexpr,
    EVEN: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return what a block of one signature adds, [BLOCK // GROUP, GROUP]; eight codes are a number of up to 64 bits."""
    group, shifts = tl.arange(0, BLOCK // GROUP), tl.arange(0, GROUP) * BITS
    words = tl.zeros([BLOCK // GROUP], tl.int64)
    for place in tl.static_range(BITS):
        byte = group * BITS + place
        there = None if EVEN else byte < (count * BITS + 7) // 8
        piece = tl.load(codes + first // GROUP * BITS + byte, mask=there, other=None if EVEN else 0)
        words |= piece.to(tl.int64) << (8 * place)
    code = ((words[:, None] >> shifts[None, :]) & ((1 << BITS) - 1)).to(tl.int32)
    value = code.to(tl.float32) * tl.load(grid + 1) + tl.load(grid)
    value = tl.where(code == (1 << BITS) - 1, tl.load(grid + 2), value)
    return value * tl.load(grid + 3)


@triton.jit
def apply_signature_fwd_kernel(
    addresses,  # int64 [tensors, 2 + K]: where the base, the result and each signature's codes start; 0 without any
    grids,  # fp32 [tensors, K, 4]: lowest value, step, highest value, scale
    tasks,  # int64 [programs, 3]: tensor, first element, number of elements
    DTYPE: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,  # of signature i, in hexadecimal digit i from the right
    EVEN: tl.constexpr,  # every program has BLOCK weights: without masks, accesses are 128 bits wide
    ALIGNED: tl.constexpr,  # every base and result starts at a multiple of 16 bytes
    GROUP: tl.constexpr,  # codes that begin and end with a byte
    BLOCK: tl.constexpr,
):
    """Write one block of one tensor, summed in fp32 in the order of the signatures."""
    task = tasks + 3 * tl.program_id(0).to(tl.int64)
    tensor, count = tl.load(task), tl.load(task + 2)
    first = tl.multiple_of(tl.load(task + 1), BLOCK)
    starts = addresses + (2 + K) * tensor
    group, member = tl.arange(0, BLOCK // GROUP), tl.arange(0, GROUP)
    within = group[:, None] * GROUP + member[None, :]
    inside = None if EVEN else within < count
    base = tl.load(starts).to(tl.pointer_type(DTYPE))
    out = tl.load(starts + 1).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        base, out = tl.multiple_of(base, 16), tl.multiple_of(out, 16)
    total = tl.load(base + first + within, mask=inside, other=None if EVEN else 0.0).to(tl.float32)
    for i in tl.static_range(K):
        start = tl.load(starts + 2 + i)
        if start != 0:
            at = start.to(tl.pointer_type(tl.uint8))
            grid = grids + (tensor * K + i) * 4
            total += _values(at, grid, first, count, (BITS >> 4 * i) & 15, EVEN, GROUP, BLOCK)
    tl.store(out + first + within, total.to(DTYPE), mask=inside)


def launch_apply_signature(
    outs: Sequence[Tensor],
    bases: Sequence[Tensor],
    codes: Sequence[Tensor],
    low: Tensor,
    high: Tensor,
    scales: Sequence[float],
    bits: Sequence[int],
) -> None:
    """Run the kernel, once for each data type; arguments as in the registered operator.

    Tables of addresses are cached while those repeat. Results that are not contiguous are written by way of a copy.
    """
    used = [i for i, scale in enumerate(scales) if scale != 0]
    groups: dict[tuple[torch.dtype, bool], list[int]] = defaultdict(list)
    bases = [base.contiguous() for base in bases]
    written = [out if out.is_contiguous() else torch.empty_like(base) for out, base in zip(outs, bases, strict=True)]
    for t, pair in enumerate(zip(written, bases, strict=True)):
        groups[pair[0].dtype, all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in pair)].append(t)
    rows = [[codes[i * len(outs) + t].contiguous() for i in used] for t in range(len(outs))]
    grids = _grids(low, high, scales, bits)[:, used]
    with torch.cuda.device_of(outs[0]):
        for (dtype, aligned), places in groups.items():
            tensors = [(bases[t], written[t], *rows[t]) for t in places]
            _launch(tensors, grids[places].contiguous(), [bits[i] for i in used], dtype, aligned)
    for out, result in zip(outs, written, strict=True):
        if out is not result:
            out.copy_(result)


def _grids(low: Tensor, high: Tensor, scales: Sequence[float], bits: Sequence[int]) -> Tensor:
    """Return the lowest value, step, highest value and scale of every signature in every tensor, (T, K, 4)."""
    low, high = low.float(), high.float()
    tops = low.new_tensor([2.0**each - 1.0 for each in bits]).unsqueeze(1)
    factors = low.new_tensor(list(scales)).unsqueeze(1).expand_as(low)
    return torch.stack([low, (high - low) / tops, high, factors], dim=-1).transpose(0, 1)


def _launch(
    tensors: list[tuple[Tensor, ...]], grids: Tensor, bits: list[int], dtype: torch.dtype, aligned: bool
) -> None:
    like = tensors[0][0]
    stream = torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else 0
    starts = tuple(part.data_ptr() if part.numel() else 0 for parts in tensors for part in parts)
    addresses = address_table(starts, like.device, stream)
    block, warps = pick_config(WARP_SIZE)
    numels = tuple(parts[0].numel() for parts in tensors)
    for even, tasks in zip((True, False), task_tables(numels, block, like.device), strict=True):
        if len(tasks):
            apply_signature_fwd_kernel[(len(tasks),)](
                addresses,
                grids,
                tasks,
                DTYPE=TRITON_DTYPES[dtype],
                K=len(bits),
                BITS=_digits(bits),
                EVEN=even,
                ALIGNED=aligned,
                GROUP=GROUP,
                BLOCK=block,
                num_warps=warps,
                enable_fp_fusion=False,
            )


def _digits(bits: Sequence[int]) -> int:
    return sum(each << 4 * i for i, each in enumerate(bits))


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: one signature and three, odd bits, and a tail."""
    block, warps = pick_config(warp_size)
    rows = []
    for dtype, bits, even in (
        (torch.float32, [4], True),
        (torch.float32, [4, 4, 4], True),
        (torch.bfloat16, [3, 8], True),
        (torch.float32, [4, 3], False),
    ):
        rows.append(
            Row(
                name=f"{TRITON_DTYPES[dtype]} {', '.join(map(str, bits))} bits",
                kernel=apply_signature_fwd_kernel,
                signature={"addresses": "*i64", "grids": "*fp32", "tasks": "*i64"},
                constexprs={
                    "DTYPE": TRITON_DTYPES[dtype],
                    "K": len(bits),
                    "BITS": _digits(bits),
                    "EVEN": even,
                    "ALIGNED": True,
                    "GROUP": GROUP,
                    "BLOCK": block,
                },
                num_warps=warps,
                registers=REGISTERS,
                even=even,
                loads=(block * dtype.itemsize, *[0] * sum(bits)),  # bytes of codes are picked one at a time
                stores=(block * dtype.itemsize,),
            )
        )
    return rows
