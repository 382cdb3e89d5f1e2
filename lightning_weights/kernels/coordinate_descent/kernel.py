"""Coordinate descent as a Triton kernel: one program per path, weights in registers, the Gram matrix in the cache."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_weights.kernels._aot import TARGETS, Row
from lightning_weights.kernels.coordinate_descent.cost import pick_config
from lightning_weights.kernels.coordinate_descent.reference import Solutions

TRITON_DTYPES = {torch.float32: "fp32", torch.float64: "fp64"}
REGISTERS = 128  # budget
UNROLLED = 12  # loads of a vector that the five become, since loops are unrolled


@triton.jit
def _slopes(gram, m, w, column, size, SIZE: tl.constexpr):
    """Return m - G w, row by row of the symmetric matrix."""
    slopes = m
    for j in range(size):
        slopes -= tl.load(gram + j * SIZE + column) * tl.sum(tl.where(column == j, w, 0.0))
    return slopes


@triton.jit
def _diagonal(gram, m, column, size, SIZE: tl.constexpr):
    diagonal = tl.zeros_like(m)
    for j in range(size):
        diagonal += tl.where(column == j, tl.load(gram + j * SIZE + column), 0.0)
    return diagonal


@triton.jit
def _gap(w, slopes, m, l1, l2, power):
    """Return the duality gap and the largest slope, see [`duality_gap`][]."""
    left = power - tl.sum(m * w)
    largest = tl.max(tl.abs(slopes - l2 * w))
    spent = left - tl.sum(slopes * w) + l2 * tl.sum(w * w)
    share = l1 / tl.maximum(l1, largest)
    gap = 0.5 * spent + l1 * tl.sum(tl.abs(w)) + 0.5 * share * share * spent - share * left
    return gap, largest


@triton.jit
def _screened(w, slopes, diagonal, l1, l2, gap, largest):
    """Return which coordinates the gap proves to be zero."""
    borne = tl.maximum(l1, largest)
    near = borne * tl.sqrt(2.0 * tl.abs(gap) * (diagonal + l2))
    return (borne - tl.abs(slopes - l2 * w)) * l1 > near


@triton.jit
def _sweep(gram, w, slopes, diagonal, inverse, l1, column, size, SIZE: tl.constexpr):
    """Return weights and slopes after one turn of every coordinate.

    Every lane works out what its coordinate would become; the one whose turn it is tells the others.
    """
    for j in range(size):
        rest = slopes + w * diagonal
        there = (rest - tl.minimum(tl.maximum(rest, -l1), l1)) * inverse
        step = tl.sum(tl.where(column == j, there - w, 0.0))
        w = tl.where(column == j, there, w)
        slopes -= tl.load(gram + j * SIZE + column) * step
    return w, slopes


@triton.jit
def coordinate_descent_fwd_kernel(
    gram,  # [grams, SIZE, SIZE]: rows and columns from the size on are zero
    moments,  # [grams, SIZE]
    path_gram,  # int64 [paths]
    l1s,  # [paths, problems]
    l2s,  # likewise
    powers,  # [grams]
    starts,  # [paths, SIZE], if GIVEN
    weights,  # [paths, problems, SIZE]
    sweeps,  # int64 [paths, problems]
    gaps,  # [paths, problems]
    problems, size, max_sweeps, tolerance, GIVEN: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Solve the problems of one path, see [`coordinate_descent_reference`][]."""
    path = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, SIZE)
    fold = tl.load(path_gram + path)
    gram += fold * SIZE * SIZE
    m = tl.load(moments + fold * SIZE + column)
    diagonal = _diagonal(gram, m, column, size, SIZE)
    power = tl.load(powers + fold)
    goal = tolerance * power
    w = tl.zeros_like(m)
    if GIVEN:
        w = tl.load(starts + path * SIZE + column)
    for problem in range(problems):
        at = path * problems + problem
        l1, l2 = tl.load(l1s + at), tl.load(l2s + at)
        inverse = tl.where(diagonal > 0.0, 1.0 / tl.where(diagonal > 0.0, diagonal + l2, 1.0), 0.0)
        slopes = _slopes(gram, m, w, column, size, SIZE)
        gap, largest = _gap(w, slopes, m, l1, l2, power)
        running, looks, count = (gap < 0.0) | (gap > goal), True, 0
        while running:
            if looks:
                far = _screened(w, slopes, diagonal, l1, l2, gap, largest)
                lost = tl.max(tl.where(far, tl.abs(w), 0.0))
                w, inverse = tl.where(far, 0.0, w), tl.where(far, 0.0, inverse)
                if lost > 0.0:
                    slopes = _slopes(gram, m, w, column, size, SIZE)
            running = count < max_sweeps
            if running:
                before = w
                w, slopes = _sweep(gram, w, slopes, diagonal, inverse, l1, column, size, SIZE)
                count += 1
                looks = (tl.max(tl.abs(w - before)) <= tolerance * tl.max(tl.abs(w))) | (count == max_sweeps)
                if looks:
                    gap, largest = _gap(w, slopes, m, l1, l2, power)
                    running = gap > goal
        tl.store(weights + at * SIZE + column, w)
        tl.store(sweeps + at, count)
        tl.store(gaps + at, gap)


def launch_coordinate_descent(
    gram: Tensor,
    moments: Tensor,
    path_gram: Tensor,
    l1: Tensor,
    l2: Tensor,
    target_power: Tensor,
    starts: Tensor | None,
    tolerance: float,
    max_sweeps: int,
) -> Solutions:
    """Run the kernel over all paths; arguments and results as those of the operator."""
    size = gram.shape[1]
    length, warps = pick_config(size, gram.itemsize)
    weights = gram.new_empty(*l1.shape, length)
    sweeps, gap = torch.empty_like(l1, dtype=torch.int64), torch.empty_like(l1)
    whole = torch.nn.functional.pad(gram, (0, length - size, 0, length - size)).contiguous()
    sides = torch.nn.functional.pad(moments, (0, length - size)).contiguous()
    given = None if starts is None else torch.nn.functional.pad(starts, (0, length - size)).contiguous()
    if l1.numel():
        with torch.cuda.device_of(gram):
            coordinate_descent_fwd_kernel[(len(l1),)](
                whole, sides, path_gram.contiguous(), l1.contiguous(), l2.contiguous(), target_power.contiguous(),
                weights if given is None else given, weights, sweeps, gap, l1.shape[1], size, max_sweeps, tolerance,
                GIVEN=given is not None, SIZE=length, num_warps=warps,
            )  # fmt: skip
    return weights[..., :size].clone(), sweeps, gap


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: the usual sizes in single and double precision."""
    single, double = torch.float32, torch.float64
    return [_row(warp_size, single, 64), _row(warp_size, single, 128), _row(warp_size, double, 64)]


def _row(warp_size: int, dtype: torch.dtype, size: int) -> Row:
    kind, vector = TRITON_DTYPES[dtype], size * dtype.itemsize
    length, warps = pick_config(size, dtype.itemsize)
    floats = ("gram", "moments", "l1s", "l2s", "powers", "starts", "weights", "gaps")
    wide = {target: vector // (16 * warps * threads) for target, (_, _, threads) in TARGETS.items()}
    return Row(
        name=f"{kind} p={size}",
        kernel=coordinate_descent_fwd_kernel,
        signature={
            **dict.fromkeys(floats, f"*{kind}"),
            **dict.fromkeys(("path_gram", "sweeps"), "*i64"),
            **dict.fromkeys(("problems", "size", "max_sweeps"), "i32"),
            "tolerance": "fp32",
        },
        constexprs={"GIVEN": False, "SIZE": length},
        num_warps=warps,
        registers=REGISTERS,
        even=True,
        loads=(vector,) * 5,
        stores=(vector,),
        wide_loads={target: count * UNROLLED for target, count in wide.items()},
        wide_stores=wide,
        fp_fusion=True,
    )
