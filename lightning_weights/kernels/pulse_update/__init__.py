"""One update of conductances by pulses: round, pulse, clip, refresh and read out, in one pass over the devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.errors import KernelUnavailableError, ShardedParameterError
from lightning_weights.kernels._op import kernel_mode, register, takes_triton
from lightning_weights.kernels.pulse_update.config import MODES, REFRESHES, ROUNDINGS, DeviceMaps, PulseRule
from lightning_weights.kernels.pulse_update.eager import update_asynchronously, update_in_pieces
from lightning_weights.kernels.pulse_update.pairs import read_out
from lightning_weights.kernels.pulse_update.reference import pulse_update_reference
from lightning_weights.kernels.pulse_update.responses import KINDS, Response, pulses_to_reach, rise

__all__ = [
    "KINDS",
    "MODES",
    "REFRESHES",
    "ROUNDINGS",
    "DeviceMaps",
    "PulseRule",
    "Response",
    "pulse_update",
    "pulse_update_reference",
    "pulses_to_reach",
    "read_out",
    "rise",
]

GRADS = (torch.float32, torch.bfloat16, torch.float16)  # of the Triton kernel
STATES = (torch.float32,)


def _update(
    weight: Tensor,
    grad: Tensor,
    states: Sequence[Tensor],
    counts: Tensor,
    nus: Sequence[Tensor],
    rates: Sequence[Tensor],
    ranges: Sequence[Tensor],
    table: Sequence[Tensor],
    kind: str,
    way: str,  # PyTorch's own functions for compiled code have an argument called mode
    rounding: str,
    refresh: str,
    nu_up: float,
    nu_down: float,
    n_states: float,
    c2c: float,
    max_pulses: int,
    threshold: float,
    high: float,
    low: float,
    gain: float,
    w_scale: float,
    seed: int,
) -> None:
    response = Response(kind, nu_up, nu_down, n_states, c2c)
    rule = PulseRule(rounding, max_pulses, threshold, refresh, high, low)
    maps = DeviceMaps(nus, rates, ranges, table)
    arguments = (weight, grad, states, counts, response, way, rule, maps, gain, w_scale, seed)
    if kind == "table" and kernel_mode() == "triton":
        raise KernelUnavailableError("the kernel is not written for kind='table'; use 'auto' to fall back to eager")
    whole = [(states, STATES), ([weight, *nus, *rates, *ranges], STATES), ([grad], GRADS)]
    if kind != "table" and takes_triton(weight.device.type, whole):
        from lightning_weights.kernels.pulse_update.kernel import launch_pulse_update

        launch_pulse_update(*arguments)
    elif weight.device.type == "cpu":
        update_in_pieces(*arguments)
    else:
        update_asynchronously(*arguments)


def _update_fake(*arguments: object) -> None:
    return None


_op = register(
    "pulse_update",
    "(Tensor(a!) weight, Tensor grad, Tensor(b!)[] states, Tensor(c!) counts, Tensor[] nus, Tensor[] rates, "
    "Tensor[] ranges, Tensor[] table, str kind, str way, str rounding, str refresh, float nu_up, float nu_down, "
    "float n_states, float c2c, int max_pulses, float threshold, float high, float low, float gain, float w_scale, "
    "int seed) -> ()",
    implementation=_update,
    fake=_update_fake,
)


def pulse_update(
    weight: Tensor,
    grad: Tensor,
    states: Sequence[Tensor],
    counts: Tensor,
    *,
    response: Response,
    mode: str,
    rule: PulseRule,
    gain: float,
    w_scale: float,
    seed: int = 0,
    maps: DeviceMaps | None = None,
) -> None:
    """Update an array of devices in place, fused: [`pulse_update_reference`][].

    Args:
        weight: Receives γ(x⁺ - x⁻); contiguous, and before the call what the states read out to.
        grad: Gradient of the weights. NaN gives no pulse.
        states: x⁺ and x⁻, or x⁺ alone for ``single``; contiguous, fp32 or fp64.
        counts: int64, four elements, to which pulses, weights that exceeded the largest number, refreshed pairs and
            weights that got a pulse are added.
        response: How devices answer to pulses.
        mode: One of `MODES`.
        rule: How changes become pulses, and when pairs are refreshed.
        gain: Pulses per unit of gradient: -ηN/γ.
        w_scale: γ.
        seed: Of this tensor and step, below 2³¹.
        maps: How devices differ; None if they do not.

    Raises:
        ValueError: If states or weights are in 16 bits, where small steps would be lost, or not contiguous.
        ShardedParameterError: If a tensor is sharded: the noise follows indices of the whole.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Examples:
        >>> w, x, counts = torch.zeros(2), [torch.zeros(2), torch.zeros(2)], torch.zeros(4, dtype=torch.int64)
        >>> kinds = {"response": Response("linear", n_states=16), "mode": "rising", "gain": -4.0, "w_scale": 2.0}
        >>> pulse_update(w, torch.tensor([-1.0, 0.5]), x, counts, rule=PulseRule("nearest"), **kinds)
        >>> w.tolist(), x[1].tolist(), counts.tolist()
        ([0.5, -0.25], [0.0, 0.125], [6, 0, 0, 2])
    """
    maps = DeviceMaps() if maps is None else maps
    tensors = [weight, *states, *maps.nus, *maps.rates, *maps.ranges]
    if any(hasattr(tensor, "placements") for tensor in (*tensors, grad)):
        raise ShardedParameterError(
            "pulses follow the indices of whole arrays of devices, and one of these tensors is sharded; use DDP"
        )
    if any(tensor.dtype not in (torch.float32, torch.float64) for tensor in tensors):
        raise ValueError(
            f"states and weights are {', '.join(sorted({str(t.dtype) for t in tensors}))}; allowed are float32 and "
            f"float64, since a pulse may change less than 16 bits can tell. Use autocast instead of 16-bit weights"
        )
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError("weight, states and maps have to be contiguous; use contiguous() or memory_format=preserve")
    _op(
        weight, grad, states, counts, maps.nus, maps.rates, maps.ranges, maps.table,
        response.kind, mode, rule.rounding, rule.refresh, response.nu_up, response.nu_down, response.n_states,
        response.c2c, rule.max_pulses, rule.threshold, rule.high, rule.low, gain, w_scale, seed,
    )  # fmt: skip
