"""The CLASSP step as a Triton kernel: one launch for all full blocks of one layout, one for their tails."""

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
from lightning_weights.kernels.classp_step.cost import pick_config
from lightning_weights.kernels.classp_step.reference import magnitude_threshold

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
ALIGNMENT = 16  # bytes of the widest load and store
REGISTERS_EVEN, REGISTERS_TAIL = 64, 96  # budgets; 64 lets eight programs of 128 threads share a multiprocessor


@triton.jit
def _accumulate_and_root(size, old_sum, power, eps, POWER: tl.constexpr):
    if POWER == 1:
        new_sum = old_sum + size
        root = eps + new_sum
    elif POWER == 2:
        new_sum = old_sum + size * size
        root = tl.sqrt_rn(eps + new_sum)
    else:
        new_sum = old_sum + tl.exp2(power * tl.log2(size))
        root = tl.exp2(tl.log2(eps + new_sum) / power)
    return new_sum, root


@triton.jit
def classp_step_fwd_kernel(
    addresses,  # int64 [tensors, 3]: where weights, gradients and accumulators start
    tasks,  # int64 [programs, 3]: tensor, first element, number of elements
    counts,  # int64 [2]: accepted, not finite
    lr,
    magnitude,
    power,
    eps,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    POWER: tl.constexpr,  # 1 or 2; 0 takes the argument `power`
    DECAY: tl.constexpr,
    EVEN: tl.constexpr,  # every program has BLOCK elements: without masks, loads are 128 bits wide
    ALIGNED: tl.constexpr,  # every address is a multiple of 16 bytes
    BLOCK: tl.constexpr,  # below 2**15, so that both counts fit into one sum
):
    """Update one block of one tensor, see [`classp_step_reference`][]; all arithmetic in fp32.

    Programs write disjoint elements; only the two counters are shared, by atomic additions.
    """
    task = tasks + 3 * tl.program_id(0).to(tl.int64)
    row = addresses + 3 * tl.load(task)
    param = tl.load(row).to(tl.pointer_type(PARAM))
    grad = tl.load(row + 1).to(tl.pointer_type(GRAD))
    grad_sum = tl.load(row + 2).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        param = tl.multiple_of(param, 16)
        grad = tl.multiple_of(grad, 16)
        grad_sum = tl.multiple_of(grad_sum, 16)
    within = tl.arange(0, BLOCK)
    offsets = tl.multiple_of(tl.load(task + 1), BLOCK) + within
    if EVEN:
        inside = None
        g = tl.load(grad + offsets).to(tl.float32)
    else:
        inside = within < tl.load(task + 2)
        g = tl.load(grad + offsets, mask=inside, other=0.0).to(tl.float32)

    size = tl.abs(g)
    finite = size < float("inf")
    accepted = (size > magnitude) & finite
    both = tl.sum(accepted.to(tl.int32) + tl.where(finite, 0, 65536))
    if both >= 65536:
        tl.atomic_add(counts + 1, (both >> 16).to(tl.int64), sem="relaxed")
    if (both & 65535) > 0:  # else neither weights nor accumulators are touched
        tl.atomic_add(counts, (both & 65535).to(tl.int64), sem="relaxed")
        old_sum = tl.load(grad_sum + offsets, mask=inside)
        old = tl.load(param + offsets, mask=inside).to(tl.float32)
        new_sum, root = _accumulate_and_root(size, old_sum, power, eps, POWER)
        step = -lr * g
        if DECAY:
            step = tl.div_rn(step, root)
        tl.store(grad_sum + offsets, tl.where(accepted, new_sum, old_sum), mask=inside)
        tl.store(param + offsets, tl.where(accepted, old + step, old).to(PARAM), mask=inside)


def launch_classp_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    grad_sums: Sequence[Tensor],
    counts: Tensor,
    lr: float,
    threshold: float,
    power: float,
    eps: float,
    apply_decay: bool,
) -> None:
    """Run the kernel over lists of tensors of one device; arguments as in [`classp_step`][].

    The kernel reads addresses from a table, so that one launch serves all tensors of equal dtypes. The table is cached
    while addresses repeat; a CUDA graph must therefore be captured after a step with the same gradient buffers.
    """
    groups, copies = _by_layout(params, grads, grad_sums)
    stream = torch.cuda.current_stream(counts.device).cuda_stream if counts.is_cuda else 0
    magnitude = magnitude_threshold(threshold, torch.float32)
    with torch.cuda.device_of(counts):
        for (param_dtype, grad_dtype, aligned), triples in groups.items():
            numels = tuple(triple[0].numel() for triple in triples)
            block, warps = pick_config(sum(numels), min(param_dtype.itemsize, grad_dtype.itemsize), WARP_SIZE)
            starts = tuple(tensor.data_ptr() for triple in triples for tensor in triple)
            addresses = address_table(starts, counts.device, stream)
            for even, tasks in zip((True, False), task_tables(numels, block, counts.device), strict=True):
                if len(tasks) == 0:
                    continue
                classp_step_fwd_kernel[(len(tasks),)](
                    addresses,
                    tasks,
                    counts,
                    lr,
                    magnitude,
                    power,
                    eps,
                    PARAM=TRITON_DTYPES[param_dtype],
                    GRAD=TRITON_DTYPES[grad_dtype],
                    POWER=int(power) if power in (1.0, 2.0) else 0,
                    DECAY=apply_decay,
                    EVEN=even,
                    ALIGNED=aligned,
                    BLOCK=block,
                    num_warps=warps,
                    enable_fp_fusion=False,  # the product of step and rate is rounded like the reference's
                )
    for original, copy in copies:
        if original is not copy:
            original.copy_(copy)


def _by_layout(
    params: Sequence[Tensor], grads: Sequence[Tensor], grad_sums: Sequence[Tensor]
) -> tuple[dict[tuple[torch.dtype, torch.dtype, bool], list[Sequence[Tensor]]], list[tuple[Tensor, Tensor]]]:
    """Group tensors by what a launch has in common; the second result pairs strided originals with their copies."""
    groups: dict[tuple[torch.dtype, torch.dtype, bool], list[Sequence[Tensor]]] = defaultdict(list)
    copies = []
    for param, grad, grad_sum in zip(params, grads, grad_sums, strict=True):
        flat: Sequence[Tensor] = (param, grad, grad_sum)
        if not _share_layout(*flat):
            flat = [tensor.contiguous() for tensor in flat]
            copies += [(param, flat[0]), (grad_sum, flat[2])]
        aligned = all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in flat)
        groups[param.dtype, grad.dtype, aligned].append(flat)
    return groups, copies


def _share_layout(param: Tensor, grad: Tensor, grad_sum: Tensor) -> bool:
    """Whether equal offsets from the three starts are equal positions, without gaps (channels-last included)."""
    if param.is_contiguous() and grad.is_contiguous() and grad_sum.is_contiguous():
        return True
    if not param.stride() == grad.stride() == grad_sum.stride():
        return False
    return param.permute(sorted(range(param.dim()), key=param.stride, reverse=True)).is_contiguous()


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: full blocks in every arithmetic and in two dtypes, and a tail.

    fp16 gives bf16's code but for the conversions.
    """
    fp32, bf16, _ = TRITON_DTYPES
    variants = [(fp32, 1, True, True), (bf16, 1, True, True)]
    variants += [(fp32, 2, True, True), (fp32, 0, True, True), (fp32, 1, False, True), (fp32, 1, True, False)]
    rows = []
    for dtype, power, decay, even in variants:
        block, warps = pick_config(1, dtype.itemsize, warp_size)
        rows.append(
            Row(
                name=f"{TRITON_DTYPES[dtype]} p={power or 'any'}{'' if decay else ' no decay'}",
                kernel=classp_step_fwd_kernel,
                signature={
                    **dict.fromkeys(("addresses", "tasks", "counts"), "*i64"),
                    **dict.fromkeys(("lr", "magnitude", "power", "eps"), "fp32"),
                },
                constexprs={
                    "PARAM": TRITON_DTYPES[dtype],
                    "GRAD": TRITON_DTYPES[dtype],
                    "POWER": power,
                    "DECAY": decay,
                    "EVEN": even,
                    "ALIGNED": True,
                    "BLOCK": block,
                },
                num_warps=warps,
                registers=REGISTERS_EVEN if even else REGISTERS_TAIL,
                even=even,
                loads=(block * dtype.itemsize, block * dtype.itemsize, block * 4),
                stores=(block * dtype.itemsize, block * 4),
            )
        )
    return rows
