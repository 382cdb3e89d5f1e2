"""Refreshing pairs that are full: reset, and the difference written anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.kernels.pulse_update.config import DeviceMaps, PulseRule
from lightning_weights.kernels.pulse_update.noise import REWRITE, normal_pair
from lightning_weights.kernels.pulse_update.pairs import difference, effective, move, nu_factors
from lightning_weights.kernels.pulse_update.responses import Response, pulses_to_reach


def refreshed(
    states: Sequence[Tensor],
    index: Tensor,
    *,
    response: Response,
    mode: str,
    rule: PulseRule,
    maps: DeviceMaps,
    seed: int,
) -> tuple[Sequence[Tensor], Tensor, Tensor]:
    """Reset the pairs that are full and write their differences anew.

    Args:
        states: Both devices of each pair.
        index: Index of each pair, for the noise.
        response: How devices answer.
        mode: ``rising`` or ``falling``; others need no refresh.
        rule: Thresholds, and how the differences are written.
        maps: How devices differ.
        seed: Of this step.

    Returns:
        The states, which pairs were refreshed, and the pulses that each took.
    """
    rising = mode == "rising"
    fills = [x if rising else 1.0 - x for x in states]
    chosen = torch.maximum(*fills) >= rule.high
    if rule.low > 0.0:
        chosen = chosen & (torch.minimum(*fills) >= rule.low)
    for rate in maps.rates:
        chosen = chosen & (rate != 0)  # a stuck device cannot be reset
    wanted = difference(states, maps.ranges)
    pulses = torch.zeros_like(wanted)
    if rule.refresh == "ideal":
        new = _written(wanted, maps.ranges, rising)
    else:
        new = []
        noise = normal_pair(index, seed, REWRITE) if response.c2c else (None, None)
        for device in range(2):
            side = wanted if (device == 0) == rising else -wanted
            curve = None if not maps.table else maps.table[0][[0, 1 if rising else 2]]
            nu = response.nu_up if rising else response.nu_down
            target = side.clamp(0.0, 1.0)
            given = (pulses_to_reach(target, response.kind, nu, response.n_states, curve) + 0.5).floor()
            pulses = pulses + given
            own = effective(given, response, noise[device], maps, device)
            start = torch.full_like(target, 0.0 if rising else 1.0)
            new.append(
                move(start, own, rising, response, nu_factors(maps, device), maps.table[0] if maps.table else None)
            )
    states = [torch.where(chosen, n, x) for n, x in zip(new, states, strict=True)]
    return states, chosen, torch.where(chosen, pulses, 0.0)


def _written(wanted: Tensor, ranges: Sequence[Tensor], rising: bool) -> list[Tensor]:
    """Return the states with a difference, and as much room as there can be in the direction of learning."""
    sides = [wanted.clamp(min=0.0), (-wanted).clamp(min=0.0)]
    if rising:
        return [side / r for side, r in zip(sides, ranges, strict=True)] if len(ranges) else sides
    first, second = ranges if len(ranges) else (torch.ones_like(wanted),) * 2
    high = ((wanted + second) / first).clamp(max=1.0)
    return [high, ((first * high - wanted) / second).clamp(0.0, 1.0)]
