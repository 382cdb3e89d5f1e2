"""Statistics-based quantization of weights: values with a straight-through gradient, and what there is to observe."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError, check_number
from lightning_weights.kernels._op import register, takes_triton
from lightning_weights.kernels.statsq.eager import observe, quantize
from lightning_weights.kernels.statsq.reference import StatsQuantized, oscillation_reference, statsq_reference

__all__ = [
    "StatsQObservation",
    "StatsQuantized",
    "oscillation_reference",
    "statsq",
    "statsq_observe",
    "statsq_reference",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # weights of the Triton kernel; steps and averages are fp32
MOST_BITS = 8


def _quantize(weight: Tensor, bits: int) -> Tensor:
    values = torch.empty_like(weight)
    if takes_triton(weight.device.type, [([weight], DTYPES)]):
        from lightning_weights.kernels.statsq.kernel import launch_quantize

        launch_quantize(weight, bits, values)
    else:
        quantize(weight, bits, values)
    return values


def _quantize_fake(weight: Tensor, bits: int) -> Tensor:
    return torch.empty_like(weight)


def _observe(
    weight: Tensor,
    tracker: Sequence[Tensor],
    bits: int,
    with_values: bool,
    boundary_range: float | None,
    momentum: float,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    codes, step, values, movable, counts = _observe_fake(weight, tracker, bits, with_values, boundary_range)
    results = (codes, step, values if with_values else None, None if boundary_range is None else movable, counts)
    numbers = (0.0 if boundary_range is None else boundary_range, momentum, threshold)
    covered = [([weight], DTYPES), (tracker[2:], DTYPES)]
    if takes_triton(weight.device.type, covered):
        from lightning_weights.kernels.statsq.kernel import launch_observe

        launch_observe(weight, bits, *results, tracker, *numbers)
    else:
        observe(weight, bits, *results, tracker, *numbers)
    return codes, step, values, movable, counts


def _observe_fake(
    weight: Tensor,
    tracker: Sequence[Tensor],
    bits: int,
    with_values: bool,
    boundary_range: float | None,
    *numbers: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (
        weight.new_empty(weight.shape, dtype=torch.int8),
        weight.new_empty(weight.shape[0], dtype=wide),
        weight.new_empty(weight.shape if with_values else 0),
        weight.new_empty(0 if boundary_range is None else weight.shape, dtype=torch.bool),
        weight.new_empty(4, dtype=torch.int64),
    )


_quantize_op = register("statsq", "(Tensor weight, int bits) -> Tensor", implementation=_quantize, fake=_quantize_fake)
_observe_op = register(
    "statsq_observe",
    "(Tensor weight, Tensor(a!)[] tracker, int bits, bool with_values, float? boundary_range, float momentum, "
    "float threshold) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    implementation=_observe,
    fake=_observe_fake,
)


class _StatsQ(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, bits: int) -> Tensor:
        return _quantize_op(weight, bits)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream, None


# torch asks for it in every call, and finding it out takes longer than adding to ten thousand weights
_StatsQ.forward.__signature__ = inspect.signature(_StatsQ.forward)  # type: ignore[attr-defined]


def statsq(weight: Tensor, bits: int) -> Tensor:
    r"""Quantize the rows of a weight on a grid that follows from their statistics; gradients pass straight through.

    $$s = 2 \operatorname{mean} |W|, \quad k = \bigl\lfloor n \operatorname{clamp}(W / s, -1, 1 - 10^{-6}) - \tfrac12
    \bigr\rceil, \quad \hat W = \frac{s}{n} (k + \tfrac12), \quad n = 2^{b-1}$$

    The arithmetic is in fp32 or wider, also for narrow weights and under autocast. The gradient is the identity for
    every weight, also for clipped ones, and none flows through s.

    Args:
        weight: W of shape (rows, columns).
        bits: b from 2 to 8.

    Returns:
        Ŵ of the weight's shape and dtype; zero for a row of zeros.

    Raises:
        ValueError: If ``bits`` is not allowed, or the weight is not a matrix of floating-point numbers.
        ShardedParameterError: If the weight is sharded.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: Liu, Liu & Cheng 2023, arXiv:2302.02210.

    Examples:
        >>> statsq(torch.tensor([[-0.2, 0.6, 1.0, -0.2]]), bits=2)
        tensor([[-0.2500,  0.7500,  0.7500, -0.2500]])
    """
    _check(weight, bits)
    values: Tensor = _StatsQ.apply(weight, bits)  # type: ignore[no-untyped-call]
    return values


class StatsQObservation(NamedTuple):
    """What one pass over a weight tells.

    Attributes:
        codes: k, int8, of the weight's shape.
        step: s/n of every row.
        values: Ŵ = (k + 1/2)·s/n, or None if not asked for.
        movable: Whether a weight is no farther from a threshold than the boundary range, or None if not asked for.
        counts: Four int64 numbers: codes that changed, codes that oscillated, averages above the threshold (0 each
            without a tracker) and weights that may move (0 without a boundary range).

    Examples:
        >>> statsq_observe(torch.tensor([[-0.2, 0.6]]), bits=2, boundary_range=0.3).movable
        tensor([[False, False]])
    """

    codes: Tensor
    step: Tensor
    values: Tensor | None
    movable: Tensor | None
    counts: Tensor


def statsq_observe(
    weight: Tensor,
    bits: int,
    *,
    values: bool = False,
    boundary_range: float | None = None,
    tracker: Sequence[Tensor] = (),
    momentum: float = 0.01,
    threshold: float = 0.005,
) -> StatsQObservation:
    """Return codes of a weight and whatever else is asked for, in one pass over it; nothing here has a gradient.

    Args:
        weight: W of shape (rows, columns).
        bits: b from 2 to 8.
        values: Whether the quantized weight is returned too.
        boundary_range: Distance from a threshold, in steps and at least 0, up to which a weight may move.
        tracker: Previous codes and last directions, both int8, and the average frequency of oscillations, of the
            weight's shape; advanced in place as [`oscillation_reference`][] says. None of them: nothing is tracked.
        momentum: Weight m in (0, 1] of one oscillation in the average.
        threshold: Average above which a weight counts as oscillating.

    Raises:
        ValueError: If an argument is not allowed, or a tensor does not fit.
        ShardedParameterError: If the weight is sharded.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: Liu, Liu & Cheng 2023, arXiv:2302.02210; tracking as Nagel et al. 2022, arXiv:2203.11086.

    Examples:
        >>> w = torch.tensor([[-0.2, 0.6]])
        >>> state = [torch.zeros(1, 2, dtype=torch.int8), torch.zeros(1, 2, dtype=torch.int8), torch.zeros(1, 2)]
        >>> statsq_observe(w, bits=2, tracker=state).counts.tolist(), state[0]
        ([2, 0, 0, 0], tensor([[-1,  1]], dtype=torch.int8))
    """
    _check(weight, bits)
    if boundary_range is not None:
        check_number("boundary_range", boundary_range, low=0.0)
    check_number("momentum", momentum, low=0.0, low_allowed=False, high=1.0 + 1e-12)
    check_number("threshold", threshold, low=0.0)
    _check_tracker(weight, tracker)
    result = _observe_op(weight.detach(), list(tracker), bits, values, boundary_range, momentum, threshold)
    codes, step, quantized, movable, counts = result
    return StatsQObservation(
        codes, step, quantized if values else None, None if boundary_range is None else movable, counts
    )


def _check(weight: Tensor, bits: int) -> None:
    check_number("bits", bits, low=2, high=MOST_BITS + 1, whole=True)
    if hasattr(weight, "placements"):
        raise ShardedParameterError("the scale of a row needs the whole row of weights; train without FSDP2")
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and dtype {weight.dtype}; allowed are matrices of floating-point "
            f"numbers, whose rows have a scale each"
        )


def _check_tracker(weight: Tensor, tracker: Sequence[Tensor]) -> None:
    kinds = [tensor.dtype for tensor in tracker]
    fits = all(tensor.shape == weight.shape for tensor in tracker)
    if tracker and not (
        fits and len(kinds) == 3 and kinds[:2] == [torch.int8, torch.int8] and kinds[2].is_floating_point
    ):
        raise ValueError(
            f"tracker has shapes {[tuple(tensor.shape) for tensor in tracker]} and dtypes {kinds}; allowed are three "
            f"tensors of the weight's shape {tuple(weight.shape)}: codes and directions in int8, and an average"
        )
