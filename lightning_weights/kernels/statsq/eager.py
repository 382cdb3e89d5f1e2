"""The quantizer without Triton: a few rows at a time, which stay in the cache from the sum to the last product."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_weights.kernels.statsq.reference import TOP

HALF = torch.tensor(0.5)  # made once: wrapping a Python number costs as much as adding it to a thousand weights
CHUNK = 1 << 18  # weights that are worked on at a time on the CPU


def quantize(weight: Tensor, bits: int, values: Tensor) -> None:
    """Write the quantized weights."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    with torch.inference_mode():  # spares every call the autograd layers
        for place, part, scratch in _chunks(weight, values if values.dtype == wide else None, wide):
            step = _grid_positions(part, bits, scratch)
            scratch.round_().add_(HALF).mul_(step)
            if values.dtype != wide:
                values[place] = scratch


@torch.inference_mode()
def observe(
    weight: Tensor,
    bits: int,
    codes: Tensor,
    step: Tensor,
    values: Tensor | None,
    movable: Tensor | None,
    counts: Tensor,
    tracker: Sequence[Tensor],
    boundary_range: float,
    momentum: float,
    threshold: float,
) -> None:
    """Write codes, steps and counts, and what else is asked for; advance the tracker."""
    counts.zero_()
    for place, part, scratch in _chunks(weight, None, step.dtype):
        step[place] = _grid_positions(part, bits, scratch).squeeze(1)
        if movable is not None:
            n = 2 ** (bits - 1)
            distance = scratch.floor().clamp_(-n, n - 2).add_(HALF).sub_(scratch).abs_()
            counts[3] += torch.le(distance, boundary_range, out=movable[place]).sum()
        codes[place] = scratch.round_()
        if tracker:
            _track(codes[place], [tensor[place] for tensor in tracker], counts, momentum, threshold)
        if values is not None:
            values[place] = scratch.add_(HALF).mul_(step[place].unsqueeze(1))


def _chunks(weight: Tensor, scratch: Tensor | None, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield which rows come next, their weights, and memory for them: that of ``scratch``, or always the same."""
    rows, columns = weight.shape
    count = max(1, CHUNK // max(1, columns)) if weight.device.type == "cpu" else max(1, rows)
    memory = weight.new_empty((min(count, rows), columns), dtype=dtype) if scratch is None else scratch
    if columns and 0 < rows <= count:  # views would cost as much as working on a small weight
        yield slice(None), weight, memory
        return
    for start in range(0, rows if columns else 0, count):
        place = slice(start, min(start + count, rows))
        yield place, weight[place], memory[: place.stop - start] if scratch is None else memory[place]


def _grid_positions(weight: Tensor, bits: int, scratch: Tensor) -> Tensor:
    """Write to the scratch where a few rows of weights are on the grid, before rounding, and return their steps."""
    n = 2 ** (bits - 1)
    torch.abs(weight, out=scratch) if weight.dtype == scratch.dtype else scratch.copy_(weight).abs_()
    # a sum in float64 does not depend on the order of the columns; where it is slow or missing, it may
    total = scratch.sum(1, keepdim=True, dtype=torch.float64 if weight.device.type == "cpu" else None)
    step = total.mul_(2.0 / (n * weight.shape[1])).to(scratch.dtype)
    divisor = step.clamp_min(torch.finfo(step.dtype).tiny)
    torch.div(weight, divisor, out=scratch).clamp_(-n, n * TOP).sub_(HALF)
    return step


def _track(codes: Tensor, state: Sequence[Tensor], counts: Tensor, momentum: float, threshold: float) -> None:
    previous, direction, ema = state
    ema.mul_(1.0 - momentum)
    if codes.device.type != "cpu" or not torch.equal(codes, previous):  # elsewhere the host would wait
        turn = (previous > codes).to(torch.int8) - (previous < codes).to(torch.int8)
        oscillated = turn * direction == -1
        ema.add_(oscillated.to(ema.dtype), alpha=momentum)
        direction.copy_(torch.where(turn != 0, turn, direction))
        previous.copy_(codes)
        counts[0] += turn.count_nonzero()
        counts[1] += oscillated.sum()
    counts[2] += (ema > threshold).sum()
