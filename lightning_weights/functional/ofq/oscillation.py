"""Codes that go to and fro between two levels: how often they do, and freezing those that do it too often."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.errors import check_number
from lightning_weights.kernels.statsq import oscillation_reference


class OscillationState(NamedTuple):
    """What the history of a weight's codes leaves behind; advanced in place.

    Attributes:
        previous: Codes of the step before, int8.
        direction: Sign of each code's last change, int8; 0 if there was none.
        ema: Average frequency of oscillations.

    Examples:
        >>> start_oscillation(torch.zeros(2, 3, dtype=torch.int8)).ema.sum()
        tensor(0.)
    """

    previous: Tensor
    direction: Tensor
    ema: Tensor


class FreezingState(NamedTuple):
    """Which codes are frozen, and where; advanced in place.

    Attributes:
        frozen: Whether a code is frozen.
        codes: The code that it is frozen at, int8; 0 if it is not.
        code_ema: Average of the codes over time.

    Examples:
        >>> start_freezing(torch.ones(2, dtype=torch.int8)).code_ema
        tensor([1., 1.])
    """

    frozen: Tensor
    codes: Tensor
    code_ema: Tensor


class OscillationCounts(NamedTuple):
    """What happened to the codes of a weight in a step, as 0-d int64 tensors.

    Attributes:
        flips: Codes that changed.
        oscillations: Codes that changed against the direction of their last change.
        oscillating: Codes whose average is above the threshold.

    Examples:
        >>> codes = torch.tensor([0, 1], dtype=torch.int8)
        >>> update_oscillation(codes, start_oscillation(torch.zeros_like(codes))).flips
        tensor(1)
    """

    flips: Tensor
    oscillations: Tensor
    oscillating: Tensor


def start_oscillation(codes: Tensor, ema_dtype: torch.dtype = torch.float32) -> OscillationState:
    """Return the state before the first step.

    Args:
        codes: Codes to begin with.
        ema_dtype: Floating-point type of the average.

    Examples:
        >>> start_oscillation(torch.ones(3, dtype=torch.int8), torch.float16).ema.dtype
        torch.float16
    """
    codes = codes.to(torch.int8, copy=True)
    return OscillationState(codes, torch.zeros_like(codes), torch.zeros_like(codes, dtype=ema_dtype))


def start_freezing(codes: Tensor) -> FreezingState:
    """Return the state in which nothing is frozen.

    Args:
        codes: Codes to begin with.

    Examples:
        >>> start_freezing(torch.ones(3, dtype=torch.int8)).frozen.any()
        tensor(False)
    """
    frozen = torch.zeros_like(codes, dtype=torch.bool)
    return FreezingState(frozen, torch.zeros_like(codes, dtype=torch.int8), codes.to(torch.float32, copy=True))


def update_oscillation(
    codes: Tensor, state: OscillationState, momentum: float = 0.01, threshold: float = 0.005
) -> OscillationCounts:
    r"""Advance the state by one step.

    $$D = \operatorname{sign}(k_{t-1} - k_t), \quad o_t = [k_t \ne k_{t-1},\ D = -D_\text{last}], \quad
    f_t = m\,o_t + (1 - m) f_{t-1}$$

    Args:
        codes: k of this step, int8.
        state: Advanced in place.
        momentum: m in (0, 1].
        threshold: Average above which a code counts as oscillating.

    Returns:
        How many codes changed, oscillated and are oscillating.

    Raises:
        ValueError: If a number is not allowed, or the shapes differ.

    Source: Nagel et al. 2022, arXiv:2203.11086.

    Examples:
        >>> state = start_oscillation(torch.zeros(1, dtype=torch.int8))
        >>> for code in (1, 0):
        ...     counts = update_oscillation(torch.tensor([code], dtype=torch.int8), state, momentum=0.5)
        >>> counts.oscillations, state.ema
        (tensor(1), tensor([0.5000]))
    """
    check_number("momentum", momentum, low=0.0, low_allowed=False, high=1.0 + 1e-12)
    check_number("threshold", threshold, low=0.0)
    if codes.shape != state.previous.shape:
        raise ValueError(
            f"codes have shape {tuple(codes.shape)}, the state is for {tuple(state.previous.shape)}; start a new state "
            f"for another weight"
        )
    flipped, oscillated, direction, ema = oscillation_reference(codes, *state, momentum)
    for old, new in zip(state, (codes, direction, ema), strict=True):
        old.copy_(new)
    return OscillationCounts(flipped.sum(), oscillated.sum(), (ema > threshold).sum())


def update_freezing(
    codes: Tensor, state: OscillationState, freezing: FreezingState, momentum: float, freeze_threshold: float
) -> None:
    """Freeze the codes that oscillate too often at the rounded average of what they were.

    Args:
        codes: Codes of this step, with those that were frozen before in their place.
        state: State that these codes have been through.
        freezing: Advanced in place; the average follows after the decision.
        momentum: Weight of this step in the average of the codes.
        freeze_threshold: Average frequency of oscillations above which a code is frozen.

    Raises:
        ValueError: If a number is not allowed.

    Source: Nagel et al. 2022, arXiv:2203.11086.

    Examples:
        >>> codes = torch.tensor([3], dtype=torch.int8)
        >>> state, freezing = start_oscillation(codes), start_freezing(codes)
        >>> state.ema.fill_(0.5)
        tensor([0.5000])
        >>> update_freezing(codes, state, freezing, momentum=0.01, freeze_threshold=0.1)
        >>> freezing.frozen, freezing.codes
        (tensor([True]), tensor([3], dtype=torch.int8))
    """
    check_number("momentum", momentum, low=0.0, low_allowed=False, high=1.0 + 1e-12)
    check_number("freeze_threshold", freeze_threshold, low=0.0, low_allowed=False)
    restless = state.ema > freeze_threshold
    freezing.frozen.logical_or_(restless)
    torch.where(restless, freezing.code_ema.round().to(torch.int8), freezing.codes, out=freezing.codes)
    freezing.code_ema.mul_(1.0 - momentum).add_(codes, alpha=momentum)
