"""The closed forms of `responses.py` inside the Triton kernel, in fp32."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _expm1(z):
    """Return e^z - 1: near zero through a quotient whose rounding errors cancel."""
    grown = tl.exp(z)
    near = (tl.abs(z) < 0.5) & (grown != 1.0)
    return tl.where(
        near, (grown - 1.0) * z / tl.log(tl.where(near, grown, 2.0)), tl.where(grown == 1.0, z, grown - 1.0)
    )


@triton.jit
def _log1p(z):
    """Return ln(1 + z), z > -1, in the same way."""
    grown = 1.0 + z
    return tl.where(grown == 1.0, z, tl.log(grown) * z / tl.where(grown == 1.0, 1.0, grown - 1.0))


@triton.jit
def _rise(x, k, nu, n_states, KIND: tl.constexpr):
    if KIND == "linear":
        high = x + k / n_states
    elif KIND == "soft":
        high = x - (-1.0 / _expm1(-nu) - x) * _expm1(-nu / n_states * k)
    else:
        high = x + _log1p(_expm1(nu) / n_states * k * tl.exp(-nu * x)) / nu
    return tl.minimum(tl.maximum(high, 0.0), 1.0)


@triton.jit
def _pulses_to_reach(x, nu, n_states, KIND: tl.constexpr):
    if KIND == "linear":
        pulses = x * n_states
    elif KIND == "soft":
        pulses = _log1p(x * _expm1(-nu)) * (-n_states / nu)
    else:
        pulses = _expm1(nu * x) * (n_states / _expm1(nu))
    return pulses


@triton.jit
def moved(x, k, up, nu_up, nu_down, nu_factor, n_states, KIND: tl.constexpr):
    """Return states after k pulses up or down, see [`move`][]."""
    fill = tl.where(up, x, 1.0 - x)
    nu = tl.where(up, nu_up, nu_down) * nu_factor
    high = _rise(fill, k, nu, n_states, KIND)
    return tl.where(k > 0.0, tl.where(up, high, 1.0 - high), x)


@triton.jit
def written(
    wanted,
    x_range,
    y_range,
    x_rate,
    y_rate,
    nu,
    x_nu,
    y_nu,
    n_states,
    KIND: tl.constexpr,
    RISING: tl.constexpr,
    PULSED: tl.constexpr,
):
    """Return both states after a refresh, and the pulses that it took, see [`refreshed`][]."""
    x_side, y_side = tl.maximum(wanted, 0.0), tl.maximum(-wanted, 0.0)
    pulses = tl.zeros_like(wanted)
    if PULSED:
        if not RISING:
            x_side, y_side = y_side, x_side
        x_pulses = tl.floor(_pulses_to_reach(tl.minimum(x_side, 1.0), nu, n_states, KIND) + 0.5)
        y_pulses = tl.floor(_pulses_to_reach(tl.minimum(y_side, 1.0), nu, n_states, KIND) + 0.5)
        pulses = x_pulses + y_pulses
        x = moved(tl.zeros_like(wanted), x_pulses * x_rate, True, nu, nu, x_nu, n_states, KIND)
        y = moved(tl.zeros_like(wanted), y_pulses * y_rate, True, nu, nu, y_nu, n_states, KIND)
        if not RISING:
            x, y = 1.0 - x, 1.0 - y
    elif RISING:
        x, y = x_side / x_range, y_side / y_range
    else:
        x = tl.minimum((wanted + y_range) / x_range, 1.0)
        y = tl.minimum(tl.maximum((x_range * x - wanted) / y_range, 0.0), 1.0)
    return x, y, pulses
