"""From weights to the conductances of pairs of devices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_weights.kernels.pulse_update.config import REFERENCE


def default_scale(fan_in: int) -> float:
    """Return γ, the weight of a full range, by a rule of thumb: 7.5 √(2 / fan_in).

    Args:
        fan_in: Inputs of a neuron.

    Examples:
        >>> round(default_scale(64), 3)
        1.326
    """
    return 7.5 * math.sqrt(2.0 / fan_in)


def reach(mode: str) -> float:
    """Return the largest weight that pairs, or single devices against their reference, can hold, in units of γ."""
    return REFERENCE if mode == "single" else 1.0


def clipped_share(weight: Tensor, w_scale: float, mode: str) -> float:
    """Return the share of weights that are larger than the devices can hold.

    Args:
        weight: Weights.
        w_scale: γ.
        mode: One of the modes of ``pulse_update``.

    Examples:
        >>> clipped_share(torch.tensor([0.6, 0.2]), 1.0, "single")
        0.5
    """
    return float((weight.abs() > reach(mode) * w_scale).float().mean())


def target_states(weight: Tensor, w_scale: float, mode: str, base: float) -> list[Tensor]:
    """Return the normalised conductances that read out to given weights, clipped to what devices can hold.

    Of a pair that rises, the emptier device is at ``base``; of one that falls, the fuller one at 1 - ``base``; of one
    that does both, the emptier one at ``base``. Weights so large that this leaves no room move it.

    Args:
        weight: Weights.
        w_scale: γ.
        mode: One of the modes of ``pulse_update``.
        base: Distance from the end of the range.

    Returns:
        x⁺ and x⁻, or x⁺ alone for ``single``.

    Examples:
        >>> [x.tolist() for x in target_states(torch.tensor([0.5, -1.0]), 1.0, "rising", 0.25)]
        [[0.75, 0.0], [0.25, 1.0]]
    """
    wanted = (weight / w_scale).clamp(-reach(mode), reach(mode))
    if mode == "single":
        return [REFERENCE + wanted]
    larger, smaller = wanted.clamp(min=0.0), (-wanted).clamp(min=0.0)
    if mode == "falling":
        top = torch.maximum(torch.full_like(wanted, 1.0 - base), wanted.abs())
        return [top - smaller, top - larger]
    bottom = torch.minimum(torch.full_like(wanted, base), 1.0 - wanted.abs())
    return [bottom + larger, bottom + smaller]
