"""Launches of the Triton kernel: one for all matrices that share rank, side and dtypes."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from lightning_weights.kernels._op import WARP_SIZE
from lightning_weights.kernels.projected_adam.blockwise import code_map
from lightning_weights.kernels.projected_adam.cost import STAGES, pick_config, rows_per_block
from lightning_weights.kernels.projected_adam.step_kernels import projected_adam_fwd_kernel

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
ALIGNMENT = 16  # bytes of the widest load and store


def launch_projected_adam(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    lefts: Sequence[Tensor],
    rights: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    absmaxes: Sequence[Tensor],
    sq_absmaxes: Sequence[Tensor],
    step_sizes: Sequence[float],
    beta1: float,
    beta2: float,
    eps: float,
    scale: float,
    decay: float,
) -> None:
    """Run the kernel over lists of matrices that are projected on one side; arguments as in [`projected_adam`][]."""
    maxima = (absmaxes, sq_absmaxes) if absmaxes else (exp_avgs, exp_avg_sqs)
    lists = (params, grads, lefts or rights, exp_avgs, exp_avg_sqs, *maxima)
    groups, copies = _by_layout(list(zip(*lists, strict=True)), step_sizes, bool(lefts))
    with torch.cuda.device_of(params[0]):
        for (param_dtype, grad_dtype, rank, even, step_size), matrices in groups.items():
            tiles = pick_config(rank, WARP_SIZE, even)
            shapes = tuple(tuple(flat[0].shape)[:: -1 if lefts else 1] for flat in matrices)
            addresses = tuple(tuple(tensor.data_ptr() for tensor in flat) for flat in matrices)
            table, tasks = _tables(addresses, shapes, tiles.outer, params[0].device)
            maps = [code_map(signed, params[0].device) if absmaxes else table for signed in (True, False)]
            projected_adam_fwd_kernel[(len(tasks),)](
                table,
                tasks,
                *maps,
                rank,
                step_size * scale,
                beta1,
                beta2,
                eps,
                1.0 - decay,
                PARAM=TRITON_DTYPES[param_dtype],
                GRAD=TRITON_DTYPES[grad_dtype],
                LEFT=bool(lefts),
                CODES=bool(absmaxes),
                EVEN=even,
                OUTER=tiles.outer,
                INNER=tiles.inner,
                RANK=tiles.rank,
                SHARE=rows_per_block(rank) if absmaxes else tiles.outer,
                num_warps=tiles.warps,
                num_stages=STAGES,
            )
    for original, copy in copies:
        original.copy_(copy)


def _by_layout(
    matrices: Sequence[Sequence[Tensor]], step_sizes: Sequence[float], left: bool
) -> tuple[dict[tuple[Any, ...], list[Sequence[Tensor]]], list[tuple[Tensor, Tensor]]]:
    """Group matrices by what a launch has in common; the second result pairs strided originals with their copies."""
    groups: dict[tuple[Any, ...], list[Sequence[Tensor]]] = defaultdict(list)
    copies = []
    for tensors, step_size in zip(matrices, step_sizes, strict=True):
        flat = [tensor.contiguous() for tensor in tensors]
        copies += [(tensors[place], flat[place]) for place in (0, 3, 4) if tensors[place] is not flat[place]]
        rank = min(flat[2].shape)
        groups[flat[0].dtype, flat[1].dtype, rank, _is_even(flat, left), step_size].append(flat)
    return groups, copies


def _is_even(tensors: Sequence[Tensor], left: bool) -> bool:
    """Whether tiles end where the matrix does, and addresses and rows are multiples of 16 bytes."""
    outer, inner = tensors[0].shape[:: -1 if left else 1]
    tiles = pick_config(min(tensors[2].shape), WARP_SIZE)
    aligned = all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in tensors)
    return aligned and outer % tiles.outer == inner % tiles.inner == 0 and min(tensors[2].shape) == tiles.rank


@functools.lru_cache(maxsize=64)
def _tables(
    addresses: tuple[tuple[int, ...], ...], shapes: tuple[tuple[int, ...], ...], outer: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Two int64 tables: addresses and sizes of every matrix; matrix and first row or column of every program."""
    rows = [(*where, *shape) for where, shape in zip(addresses, shapes, strict=True)]
    tasks = [(matrix, start) for matrix, (size, _) in enumerate(shapes) for start in range(0, size, outer)]
    return torch.tensor(rows).to(device), torch.tensor(tasks).to(device)
