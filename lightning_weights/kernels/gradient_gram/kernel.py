"""The Gram matrix of gradients as a Triton kernel: one launch for full blocks of all tensors, one for their tails."""

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
from lightning_weights.kernels.gradient_gram.cost import pairs, pick_config

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
ALIGNMENT = 16  # bytes of the widest load
REGISTERS = {2: 96, 3: 128, 8: 255}  # budgets by the number of objectives: all rows of a block are held at once


@triton.jit
def gradient_gram_fwd_kernel(
    addresses,  # int64 [tensors, K]: where each objective's gradient starts
    tasks,  # int64 [programs, 3]: tensor, first element, number of elements
    partials,  # fp32 [programs, PAIRS]
    DTYPE: tl.constexpr,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    SLOTS: tl.constexpr,  # the next power of two
    EVEN: tl.constexpr,  # every program has BLOCK elements: without masks, loads are 128 bits wide
    ALIGNED: tl.constexpr,  # every address is a multiple of 16 bytes
    BLOCK: tl.constexpr,
):
    """Write the inner products of one block of one tensor, in fp32, (0, 0), (0, 1) ... (1, 1) ...

    Rows that are loaded again are the same values to the compiler, since nothing is stored in between.
    """
    task = tasks + 3 * tl.program_id(0).to(tl.int64)
    row = addresses + K * tl.load(task)
    within = tl.arange(0, BLOCK)
    offsets = tl.multiple_of(tl.load(task + 1), BLOCK) + within
    inside = None if EVEN else within < tl.load(task + 2)
    other = None if EVEN else 0.0
    slots = tl.arange(0, SLOTS)
    found = tl.zeros([SLOTS], dtype=tl.float32)
    for i in tl.static_range(K):
        a_start = tl.load(row + i).to(tl.pointer_type(DTYPE))
        if ALIGNED:
            a_start = tl.multiple_of(a_start, 16)
        a = tl.load(a_start + offsets, mask=inside, other=other).to(tl.float32)
        for j in tl.static_range(i, K):
            b_start = tl.load(row + j).to(tl.pointer_type(DTYPE))
            if ALIGNED:
                b_start = tl.multiple_of(b_start, 16)
            b = tl.load(b_start + offsets, mask=inside, other=other).to(tl.float32)
            found = tl.where(slots == i * K - i * (i - 1) // 2 + j - i, tl.sum(a * b), found)
    tl.store(partials + tl.program_id(0).to(tl.int64) * PAIRS + slots, found, mask=slots < PAIRS)


def launch_gradient_gram(gradients: Sequence[Tensor], objectives: int) -> Tensor:
    """Run the kernel over K lists of tensors of one device, one after the other; returns the matrix in fp64.

    Tables of addresses are cached while those repeat.
    """
    count, device = len(gradients) // objectives, gradients[0].device
    groups: dict[tuple[torch.dtype, bool], list[list[Tensor]]] = defaultdict(list)
    for place in range(count):
        rows = [gradients[k * count + place].contiguous() for k in range(objectives)]
        aligned = all(row.data_ptr() % ALIGNMENT == 0 for row in rows)
        groups[rows[0].dtype, aligned].append(rows)
    sums = torch.zeros(pairs(objectives), dtype=torch.float64, device=device)
    with torch.cuda.device_of(gradients[0]):
        for (dtype, aligned), tensors in groups.items():
            sums += _launch(tensors, dtype, aligned)
    gram = torch.zeros(objectives, objectives, dtype=torch.float64, device=device)
    upper = torch.triu_indices(objectives, objectives, device=device)
    gram[upper[0], upper[1]] = sums
    gram[upper[1], upper[0]] = sums
    return gram


def _launch(tensors: list[list[Tensor]], dtype: torch.dtype, aligned: bool) -> Tensor:
    """Return the sums over tensors of one type: their full blocks, then their tails."""
    like, objectives = tensors[0][0], len(tensors[0])
    stream = torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else 0
    block, warps = pick_config(WARP_SIZE)
    addresses = address_table(tuple(row.data_ptr() for rows in tensors for row in rows), like.device, stream)
    number = pairs(objectives)
    sums = torch.zeros(number, dtype=torch.float64, device=like.device)
    numels = tuple(rows[0].numel() for rows in tensors)
    for even, tasks in zip((True, False), task_tables(numels, block, like.device), strict=True):
        if len(tasks) == 0:
            continue
        partials = torch.empty(len(tasks), number, dtype=torch.float32, device=like.device)
        gradient_gram_fwd_kernel[(len(tasks),)](
            addresses,
            tasks,
            partials,
            DTYPE=TRITON_DTYPES[dtype],
            K=objectives,
            PAIRS=number,
            SLOTS=triton.next_power_of_2(number),
            EVEN=even,
            ALIGNED=aligned,
            BLOCK=block,
            num_warps=warps,
        )
        sums += partials.sum(dim=0, dtype=torch.float64)
    return sums


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: three objectives in fp32 and bf16, eight, and a tail."""
    block, warps = pick_config(warp_size)
    rows = []
    for dtype, objectives, even in (
        (torch.float32, 3, True),
        (torch.bfloat16, 3, True),
        (torch.float32, 8, True),
        (torch.float32, 3, False),
    ):
        rows.append(
            Row(
                name=f"{TRITON_DTYPES[dtype]} K={objectives}",
                kernel=gradient_gram_fwd_kernel,
                signature={"addresses": "*i64", "tasks": "*i64", "partials": "*fp32"},
                constexprs={
                    "DTYPE": TRITON_DTYPES[dtype],
                    "K": objectives,
                    "PAIRS": pairs(objectives),
                    "SLOTS": triton.next_power_of_2(pairs(objectives)),
                    "EVEN": even,
                    "ALIGNED": True,
                    "BLOCK": block,
                },
                num_warps=warps,
                registers=REGISTERS[objectives],
                even=even,
                loads=(block * dtype.itemsize,) * objectives,
                stores=(0,),
                fp_fusion=True,
            )
        )
    return rows
