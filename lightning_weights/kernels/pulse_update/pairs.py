"""Pairs of devices: who gets the pulses, where they lead, and what is read out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.kernels.pulse_update.config import REFERENCE, DeviceMaps
from lightning_weights.kernels.pulse_update.responses import Response, rise


def share(mode: str, device: int, pulses: Tensor, up: Tensor) -> tuple[Tensor, Tensor | bool]:
    """Return the pulses for the first or second device of each pair, and whether they raise it.

    Args:
        mode: One of `MODES`.
        device: 0 or 1.
        pulses: Pulses for the pair.
        up: Whether the weight is to grow.

    Examples:
        >>> share("rising", 1, torch.tensor([3.0, 4.0]), torch.tensor([True, False]))
        (tensor([0., 4.]), True)
    """
    grows = up if device == 0 else ~up  # the second device counts negatively
    if mode == "rising":
        return torch.where(grows, pulses, 0.0), True
    if mode == "falling":
        return torch.where(grows, 0.0, pulses), False
    return pulses, grows


def move(
    x: Tensor,
    pulses: Tensor,
    up: Tensor | bool,
    response: Response,
    nu_factor: Tensor | None = None,
    table: Tensor | None = None,
) -> Tensor:
    """Return states after pulses that raise or lower them.

    Args:
        x: States in [0, 1].
        pulses: Pulses of each device, whole or not.
        up: Whether they raise it; for all devices, or for each.
        response: How devices answer.
        nu_factor: What multiplies the non-linearity of each device.
        table: As in [`DeviceMaps`][].

    Examples:
        >>> x = torch.tensor([0.5, 0.5])
        >>> move(x, torch.tensor([4.0, 4.0]), torch.tensor([True, False]), Response("linear", n_states=16))
        tensor([0.7500, 0.2500])
    """
    if isinstance(up, bool):
        moved = _one_way(x, pulses, up, response, nu_factor, table)
    elif response.nu_up == response.nu_down and response.kind != "table":  # one curve serves both directions
        high = _one_way(torch.where(up, x, 1.0 - x), pulses, True, response, nu_factor, table)
        moved = torch.where(up, high, 1.0 - high)
    else:
        raised, lowered = (_one_way(x, pulses, way, response, nu_factor, table) for way in (True, False))
        moved = torch.where(up, raised, lowered)
    return torch.where(pulses > 0, moved, x)


def _one_way(
    x: Tensor, pulses: Tensor, up: bool, response: Response, nu_factor: Tensor | None, table: Tensor | None
) -> Tensor:
    nu = response.nu_up if up else response.nu_down
    own = nu if nu_factor is None or nu == 0.0 else nu * nu_factor
    curve = None if table is None else table[[0, 1 if up else 2]]
    moved = rise(x if up else 1.0 - x, pulses, response.kind, own, response.n_states, curve)
    return moved if up else 1.0 - moved


def read_out(states: Sequence[Tensor], ranges: Sequence[Tensor], w_scale: float) -> Tensor:
    """Return the weights: γ times the difference of conductances, or of one and the fixed reference.

    Args:
        states: One or two tensors in [0, 1].
        ranges: Factors of the range of each, or nothing.
        w_scale: γ.

    Examples:
        >>> read_out([torch.tensor([0.75]), torch.tensor([0.25])], (), 2.0)
        tensor([1.])
    """
    return w_scale * difference(states, ranges)


def difference(states: Sequence[Tensor], ranges: Sequence[Tensor]) -> Tensor:
    """Return the difference of the conductances of each pair, normalised."""
    first, *second = (x * r for x, r in zip(states, ranges, strict=True)) if len(ranges) else states
    return first - second[0] if second else first - REFERENCE


def nu_factors(maps: DeviceMaps, device: int) -> Tensor | None:
    """Return what multiplies the non-linearity of the first or second device of each pair, if anything."""
    return maps.nus[device] if len(maps.nus) else None


def effective(pulses: Tensor, response: Response, noise: Tensor | None, maps: DeviceMaps, device: int) -> Tensor:
    """Return what pulses are worth for a device of its own rate, at this time."""
    if noise is not None:
        pulses = pulses * (1.0 + response.c2c * noise.to(pulses.dtype)).clamp(min=0.0)
    return pulses * maps.rates[device] if len(maps.rates) else pulses
