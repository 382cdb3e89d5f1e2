"""Data and an independent oracle for tests of the pulse update."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from lightning_weights.kernels.pulse_update import (
    MODES,
    REFRESHES,
    ROUNDINGS,
    DeviceMaps,
    PulseRule,
    Response,
    pulse_update,
    read_out,
)

NUS = {"linear": 0.0, "soft": 2.0, "exp": 3.0}
GAIN, W_SCALE, SEED = -1.3, 1.5, 77

# kind, mode, rounding, refresh: all pairs of choices, without their full product
CASES = [("soft", mode, rounding, "ideal") for mode in MODES for rounding in ROUNDINGS]
CASES += [(kind, mode, "stochastic", refresh) for kind in NUS for mode in MODES[:2] for refresh in REFRESHES]
CASES += [(kind, mode, "nearest", "never") for kind in NUS for mode in MODES[2:]]
CASES = list(dict.fromkeys(CASES))


def case_id(case: Any) -> str:
    """Name a case."""
    return "-".join(case)


def arguments(case: tuple[str, str, str, str], c2c: float = 0.0) -> dict[str, Any]:
    """Arguments of the operator but for tensors; depression is another curve than potentiation."""
    kind, mode, rounding, refresh = case
    response = Response(kind, NUS[kind], NUS[kind] / 2, 32.0, c2c)
    rule = PulseRule(rounding, 5, 0.5, refresh, high=0.8, low=0.05)
    return {"response": response, "mode": mode, "rule": rule, "gain": GAIN, "w_scale": W_SCALE, "seed": SEED}


def tensors(mode: str, shape: Any, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor]]:
    """A gradient, and states that are spread over the whole range."""
    return torch.randn(shape, dtype=dtype), [
        torch.rand(shape, dtype=dtype) for _ in range(1 if mode == "single" else 2)
    ]


def varied(mode: str, shape: Any, dtype: torch.dtype = torch.float32) -> DeviceMaps:
    """Devices that all differ; some are stuck."""

    def factors(low: float) -> list[Tensor]:
        return [low + torch.rand(shape, dtype=dtype) for _ in range(1 if mode == "single" else 2)]

    rates = [rate * (torch.rand(shape) > 0.1) for rate in factors(0.5)]
    return DeviceMaps(factors(0.5), rates, factors(0.5))


def take(grad: Tensor, states: list[Tensor], maps: DeviceMaps | None = None, **changes: Any) -> tuple[Any, ...]:
    """Run the operator on copies; return weights, states and counts."""
    own = [x.clone() for x in states]
    weight = read_out(own, maps.ranges if maps else (), changes["w_scale"])
    counts = torch.zeros(4, dtype=torch.int64)
    pulse_update(weight, grad, own, counts, maps=maps, **changes)
    return weight, own, counts


def oracle(grad: float, states: list[float], case: tuple[str, str, str, str]) -> list[float]:
    """One pair without stochastic rounding, pulse after pulse, from the equations' increments."""
    kind, mode, rounding, refresh = case
    settings = arguments(case)
    response, rule = settings["response"], settings["rule"]
    q = grad * GAIN
    size = abs(q)
    pulses = {"nearest": math.floor(size + 0.5), "sign": int(size > rule.threshold)}[rounding]
    pulses, states = min(pulses, rule.max_pulses), list(states)
    signs = {
        "rising": [(q > 0, +1), (q < 0, +1)],
        "falling": [(q < 0, -1), (q > 0, -1)],
        "both": [(True, 1 if q > 0 else -1), (True, -1 if q > 0 else 1)],
        "single": [(True, 1 if q > 0 else -1)],
    }[mode]
    for _ in range(pulses):
        for place, (used, sign) in enumerate(signs):
            if used and place < len(states):
                states[place] = _pulsed(states[place], sign, kind, response)
    if refresh == "ideal" and mode in ("rising", "falling"):
        fills = states if mode == "rising" else [1 - x for x in states]
        if max(fills) >= rule.high and min(fills) >= rule.low:
            d = states[0] - states[1]
            states = [max(d, 0.0), max(-d, 0.0)] if mode == "rising" else [1 - max(-d, 0.0), 1 - max(d, 0.0)]
    return states


def _pulsed(x: float, sign: int, kind: str, response: Response) -> float:
    nu = response.nu_up if sign > 0 else response.nu_down
    y = x if sign > 0 else 1 - x
    if kind == "linear":
        y += 1 / response.n_states
    elif kind == "soft":
        full = 1 / (1 - math.exp(-nu))
        y += (full - y) * (1 - math.exp(-nu / response.n_states))
    else:
        y = math.log(math.exp(nu * y) + (math.exp(nu) - 1) / response.n_states) / nu
    y = min(y, 1.0)
    return y if sign > 0 else 1 - y


ORACLE_CASES = [
    (kind, mode, rounding, refresh)
    for kind, mode, rounding, refresh in itertools.product(NUS, MODES, ("nearest", "sign"), ("never", "ideal"))
]
