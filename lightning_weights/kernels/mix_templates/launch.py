"""Launching the kernels of mixing: layouts, grids, and the sums over programs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.kernels._op import WARP_SIZE
from lightning_weights.kernels.mix_templates.cost import pick_config
from lightning_weights.kernels.mix_templates.kernel import (
    NOWHERE,
    WIDE_GROUP,
    mix_templates_bwd_kernel,
    mix_templates_fwd_kernel,
)

ALIGNMENT = 16  # bytes of the widest load and store


def launch_weights(
    templates: Sequence[Tensor], coefficients: Tensor, sets: Sequence[int], columns: int, dtype: torch.dtype
) -> Tensor:
    """Run the forward kernel; arguments and result as those of the eager `weights`, in a dtype of choice."""
    _, rows, length = templates[0].shape
    weight = templates[0].new_empty(len(sets) // columns * rows, columns * length, dtype=dtype)
    grid, numbers, options = _layout(templates, weight, sets, columns)
    with torch.cuda.device_of(weight):
        mix_templates_fwd_kernel[grid](
            templates[0], templates[-1], weight, coefficients.contiguous(), *numbers, **options
        )
    return weight


def launch_gradients(
    templates: Sequence[Tensor], coefficients: Tensor, upstream: Tensor, sets: Sequence[int], columns: int, sums: bool
) -> tuple[list[Tensor], Tensor]:
    """Run the backward kernel; arguments and results as those of the eager `gradients`.

    The sums have two stages, both in a fixed order: programs sum their tiles, PyTorch sums the programs.
    """
    grads = [torch.empty_like(part) for part in templates]
    grid, numbers, options = _layout(templates, upstream, sets, columns)
    partial = coefficients.new_empty(coefficients.numel(), grid[0]) if sums else coefficients.new_zeros(1)
    with torch.cuda.device_of(upstream):
        mix_templates_bwd_kernel[grid](
            templates[0],
            templates[-1],
            grads[0],
            grads[-1],
            upstream,
            coefficients.contiguous(),
            partial,
            *numbers,
            SUMS=sums,
            **options,
        )
    summed = partial.sum(1).view(coefficients.shape) if sums else torch.zeros_like(coefficients)
    return grads, summed


def _layout(
    templates: Sequence[Tensor], weight: Tensor, sets: Sequence[int], columns: int
) -> tuple[tuple[int, int], tuple[int, int, int], dict[str, int]]:
    """Grid, run-time numbers and compile-time options of a launch."""
    count, rows, length = templates[0].shape
    aligned = all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in (*templates, weight))
    group = WIDE_GROUP if length % WIDE_GROUP == 0 and aligned else 1
    down, across, warps = pick_config(rows, length, WARP_SIZE)
    tiles = -(-length // across)
    blocks = [[block for block, used in enumerate(sets) if used == which] for which in (0, 1)]
    first, second = ([*found, NOWHERE, NOWHERE][:2] for found in blocks)
    options = {"FIRST_A": first[0], "SECOND_A": first[1], "FIRST_B": second[0], "SECOND_B": second[1]}
    options |= {"COLUMNS": columns, "COUNT": count, "GROUP": group, "DOWN": down, "ACROSS": across}
    # products and sums apart: a block is to have the same bits in every variant
    launch = {"num_warps": warps, "enable_fp_fusion": False}
    return (-(-rows // down) * tiles, len(templates)), (rows, length // group, tiles), options | launch
