"""The sparse AdamW step as a Triton kernel: one launch for all full blocks of one layout, one for their tails."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_weights.kernels._aot import Row
from lightning_weights.kernels._launch_tables import address_table, task_tables
from lightning_weights.kernels._mixing_kernels import mixed_words
from lightning_weights.kernels._op import WARP_SIZE
from lightning_weights.kernels.sparse_adamw.cost import pick_config

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
ALIGNMENT = 16  # bytes of the widest load and store
REGISTERS_EVEN, REGISTERS_TAIL = 80, 96  # budgets; gathered entries hold an address of two registers each


@triton.jit(do_not_specialize=["seed"])
def sparse_adamw_fwd_kernel(
    addresses,  # int64 [tensors, 6]: where weights, indices, gradient, m and v start, and the position in the list
    tasks,  # int64 [programs, 3]: tensor, first entry, number of entries
    step_size,
    beta1,
    rest1,  # 1 - beta1, rounded once
    beta2,
    rest2,
    eps,
    decay,
    seed,  # 31 bits, of the step
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    GATHERED: tl.constexpr,  # the gradient holds the chosen entries alone
    STOCHASTIC: tl.constexpr,  # fp32 results are rounded to bf16 at random
    EVEN: tl.constexpr,  # every program has BLOCK entries: without masks, loads are 128 bits wide
    ALIGNED: tl.constexpr,  # every streamed address is a multiple of 16 bytes
    BLOCK: tl.constexpr,
):
    """Update one block of chosen entries of one tensor, see [`sparse_adamw_reference`][]; all arithmetic in fp32.

    Indices are distinct, so that programs write disjoint elements.
    """
    task = tasks + 3 * tl.program_id(0).to(tl.int64)
    row = addresses + 6 * tl.load(task)
    param = tl.load(row).to(tl.pointer_type(PARAM))
    indices = tl.load(row + 1).to(tl.pointer_type(tl.int32))
    grad = tl.load(row + 2).to(tl.pointer_type(GRAD))
    first = tl.load(row + 3).to(tl.pointer_type(tl.float32))
    second = tl.load(row + 4).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        indices = tl.multiple_of(indices, 16)
        first = tl.multiple_of(first, 16)
        second = tl.multiple_of(second, 16)
        if GATHERED:
            grad = tl.multiple_of(grad, 16)
    within = tl.arange(0, BLOCK)
    offsets = tl.multiple_of(tl.load(task + 1), BLOCK) + within
    inside = None if EVEN else within < tl.load(task + 2)

    places = tl.load(indices + offsets, mask=inside)
    g = tl.load(grad + (offsets if GATHERED else places), mask=inside).to(tl.float32)
    m = beta1 * tl.load(first + offsets, mask=inside) + rest1 * g
    v = beta2 * tl.load(second + offsets, mask=inside) + rest2 * g * g
    tl.store(first + offsets, m, mask=inside)
    tl.store(second + offsets, v, mask=inside)
    w = tl.load(param + places, mask=inside).to(tl.float32)
    w = (w - step_size * tl.div_rn(m, tl.sqrt_rn(v) + eps)) * decay
    if STOCHASTIC:
        salt = mixed_words(seed + tl.load(row + 5))
        noise = mixed_words(places.to(tl.uint32) * 0x9E3779B9 + salt) & 0xFFFF
        bits = (w.to(tl.uint32, bitcast=True) + noise) & 0xFFFF0000
        w = tl.where(tl.abs(w) < float("inf"), bits.to(tl.float32, bitcast=True), w)
    tl.store(param + places, w.to(PARAM), mask=inside)


class _Matrix(NamedTuple):
    """Contiguous tensors of one matrix, and its position in the caller's list."""

    param: Tensor
    indices: Tensor
    grad: Tensor
    first: Tensor
    second: Tensor
    position: int

    @property
    def gathered(self) -> bool:
        return self.grad.shape == self.first.shape

    @property
    def aligned(self) -> bool:
        streamed = [self.indices, self.first, self.second, *([self.grad] if self.gathered else [])]
        return all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in streamed)


def launch_sparse_adamw(
    params: Sequence[Tensor],
    indices: Sequence[Tensor],
    grads: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    step_sizes: Sequence[float],
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    rounding_seed: int | None,
) -> None:
    """Run the kernel over lists of tensors of one device; arguments as in [`sparse_adamw`][].

    One launch serves all tensors of equal dtypes and step size. Tables of addresses are cached while those repeat; a
    CUDA graph must therefore be captured after a step with the same gradient buffers.
    """
    groups: dict[tuple[torch.dtype, torch.dtype, bool, bool, float], list[_Matrix]] = defaultdict(list)
    copies: list[tuple[Tensor, Tensor]] = []
    tensors = zip(params, indices, grads, firsts, seconds, strict=True)
    for position, (given, size) in enumerate(zip(tensors, step_sizes, strict=True)):
        param, places, grad, first, second = (tensor.contiguous() for tensor in given)
        matrix = _Matrix(param, places, grad, first, second, position)
        groups[matrix.param.dtype, matrix.grad.dtype, matrix.gathered, matrix.aligned, size].append(matrix)
        copies += [(given[0], matrix.param), (given[3], matrix.first), (given[4], matrix.second)]
    rule = (beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps, decay)
    with torch.cuda.device_of(params[0]):
        for (*_, size), matrices in groups.items():
            _launch(matrices, size, rule, rounding_seed)
    for original, copy in copies:
        if original is not copy:
            original.copy_(copy)


def _launch(matrices: list[_Matrix], step_size: float, rule: tuple[float, ...], rounding_seed: int | None) -> None:
    """Update matrices of one layout: their full blocks, then their tails."""
    like, device = matrices[0], matrices[0].param.device
    stream = torch.cuda.current_stream(device).cuda_stream if like.param.is_cuda else 0
    counts = tuple(len(matrix.indices) for matrix in matrices)
    block, warps = pick_config(sum(counts), WARP_SIZE)
    starts = tuple(n for matrix in matrices for n in (*(t.data_ptr() for t in matrix[:5]), matrix.position))
    addresses = address_table(starts, device, stream)
    for even, tasks in zip((True, False), task_tables(counts, block, device), strict=True):
        if len(tasks) == 0:
            continue
        sparse_adamw_fwd_kernel[(len(tasks),)](
            addresses,
            tasks,
            step_size,
            *rule,
            rounding_seed or 0,
            PARAM=TRITON_DTYPES[like.param.dtype],
            GRAD=TRITON_DTYPES[like.grad.dtype],
            GATHERED=like.gathered,
            STOCHASTIC=rounding_seed is not None and like.param.dtype == torch.bfloat16,
            EVEN=even,
            ALIGNED=like.aligned,
            BLOCK=block,
            num_warps=warps,
            enable_fp_fusion=False,  # products and sums are rounded like the reference's
        )


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: dense and gathered gradients, bf16 rounded at random, and a tail."""
    fp32, bf16 = torch.float32, torch.bfloat16
    block, warps = pick_config(1, warp_size)
    streamed, single = block * 4, 0  # bytes of what is read in a row; entries here and there are loads of their own
    rows = []
    for name, dtype, gathered, even in (
        ("fp32", fp32, False, True),
        ("fp32 gathered", fp32, True, True),
        ("bf16 stochastic", bf16, False, True),
        ("fp32", fp32, False, False),
    ):
        rows.append(
            Row(
                name=name,
                kernel=sparse_adamw_fwd_kernel,
                signature={
                    **dict.fromkeys(("addresses", "tasks"), "*i64"),
                    **dict.fromkeys(("step_size", "beta1", "rest1", "beta2", "rest2", "eps", "decay"), "fp32"),
                    "seed": "i32",
                },
                constexprs={
                    "PARAM": TRITON_DTYPES[dtype],
                    "GRAD": TRITON_DTYPES[dtype],
                    "GATHERED": gathered,
                    "STOCHASTIC": dtype == bf16,
                    "EVEN": even,
                    "ALIGNED": True,
                    "BLOCK": block,
                },
                num_warps=warps,
                registers=REGISTERS_EVEN if even else REGISTERS_TAIL,
                even=even,
                loads=(streamed, streamed if gathered else single, streamed, streamed, single),
                stores=(streamed, streamed, single),
            )
        )
    return rows
