"""What k identical pulses do to the state of a device, in closed form."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

KINDS = ("linear", "soft", "exp", "table")


class Response(NamedTuple):
    """How the devices of an array answer to pulses.

    Attributes:
        kind: ``linear``, ``soft``, ``exp`` or ``table``.
        nu_up: Non-linearity of potentiation, for ``soft`` and ``exp``.
        nu_down: Non-linearity of depression.
        n_states: Pulses from one end of the range to the other.
        c2c: Relative standard deviation, from update to update, of what pulses do.

    Examples:
        >>> Response("soft", nu_up=2.0, nu_down=1.0).n_states
        64.0
    """

    kind: str
    nu_up: float = 0.0
    nu_down: float = 0.0
    n_states: float = 64.0
    c2c: float = 0.0


def rise(
    x: Tensor, k: Tensor | float, kind: str, nu: float | Tensor, n_states: float, table: Tensor | None = None
) -> Tensor:
    """Return the state after k pulses that raise it.

    With N states, K = 1/(1 - e^-ν) and α = (e^ν - 1)/N, before clipping to [0, 1]:

    * ``linear``: x + k/N
    * ``soft``: K - (K - x) e^(-νk/N), whose steps shrink as the device fills
    * ``exp``: ln(e^νx + αk)/ν
    * ``table``: through the measured points, straight between them

    For ν = 0, ``soft`` and ``exp`` are ``linear``. To lower a state is to raise 1 - x.

    Args:
        x: States in [0, 1].
        k: Pulses ≥ 0, whole or not.
        kind: One of `KINDS`.
        nu: ν ≥ 0, for all devices, or for each its own, then positive.
        n_states: N.
        table: Rows of pulses, ascending from 0, and of states, ascending from 0 to 1; for ``table``.

    Examples:
        >>> x = torch.tensor([0.0, 0.5])
        >>> rise(x, 8, "linear", 0.0, 64)
        tensor([0.1250, 0.6250])
        >>> rise(x, 8, "soft", 2.0, 64)
        tensor([0.2558, 0.6452])
    """
    if kind == "table":
        if table is None:
            raise ValueError("table is None, which kind='table' needs")
        return along(table[0], table[1], along(table[1], table[0], x) + k)
    if kind == "linear" or (isinstance(nu, float) and nu == 0.0):
        moved = x + k / n_states
    elif kind == "soft":
        gap = -1.0 / expm1(-nu) - x
        moved = x - gap * expm1(-nu / n_states * k)
    else:
        grown = (expm1(nu) / n_states) * k * torch.exp(-nu * x)
        moved = x + torch.log1p(grown) / nu
    return moved.clamp(0.0, 1.0)


def pulses_to_reach(x: Tensor, kind: str, nu: float | Tensor, n_states: float, table: Tensor | None = None) -> Tensor:
    """Return how many pulses raise a device from 0 to a state: the inverse of [`rise`][] from 0.

    Args:
        x: States in [0, 1].
        kind: One of `KINDS`.
        nu: ν, as in [`rise`][].
        n_states: N.
        table: As in [`rise`][].

    Examples:
        >>> pulses_to_reach(torch.tensor([0.0, 0.5, 1.0]), "soft", 2.0, 64)
        tensor([ 0.0000, 18.1190, 64.0000])
    """
    if kind == "table":
        if table is None:
            raise ValueError("table is None, which kind='table' needs")
        return along(table[1], table[0], x)
    if kind == "linear" or (isinstance(nu, float) and nu == 0.0):
        return x * n_states
    if kind == "soft":
        pulses: Tensor = torch.log1p(x * expm1(-nu)) * (-n_states / nu)
    else:
        pulses = torch.expm1(nu * x) * (n_states / expm1(nu))
    return pulses


def along(xs: Tensor, ys: Tensor, x: Tensor) -> Tensor:
    """Return the polygon through points (xs, ys), xs ascending, at x; beyond its ends it is constant.

    Examples:
        >>> along(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.5, 2.0, 9.0]))
        tensor([0.2500, 0.7500, 1.0000])
    """
    xs, ys = xs.to(x), ys.to(x)
    right = torch.searchsorted(xs, x.contiguous(), right=True).clamp(1, len(xs) - 1)
    low, high = xs[right - 1], xs[right]
    part = ((x - low) / (high - low)).clamp(0.0, 1.0)
    return ys[right - 1] + part * (ys[right] - ys[right - 1])


def expm1(value: Any) -> Any:
    """Return e^x - 1 of a number or a tensor."""
    return torch.expm1(value) if isinstance(value, Tensor) else math.expm1(value)
