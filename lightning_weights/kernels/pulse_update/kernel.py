"""The pulse update as a Triton kernel: one launch for the full blocks of an array of devices, one for its tail."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_weights.kernels._aot import Row
from lightning_weights.kernels._mixing_kernels import mixed_words
from lightning_weights.kernels._op import WARP_SIZE
from lightning_weights.kernels.pulse_update.answers_kernels import moved, written
from lightning_weights.kernels.pulse_update.config import DeviceMaps, PulseRule
from lightning_weights.kernels.pulse_update.cost import pick_config
from lightning_weights.kernels.pulse_update.responses import Response

REGISTERS = 96  # budget: five programs of 128 threads share a multiprocessor
REGISTERS_VARIED = 176  # and two, where every device is another one and every pulse another, too
SMALLEST_NU = 1e-6  # what stands for a ν of 0 beside one that isn't: in fp32 the same curve


@triton.jit
def _normals(index, salt, purpose: tl.constexpr):
    words = mixed_words(index * 0x9E3779B9 + mixed_words(salt + purpose))
    radius = tl.sqrt(-2.0 * tl.log(((words >> 16).to(tl.float32) + 0.5) * 0.0000152587890625))
    angle = (words & 0xFFFF).to(tl.float32) * 0.00009587379924285257  # 2 pi / 2**16
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _pulses(size, index, salt, max_pulses, threshold, ROUNDING: tl.constexpr):
    if ROUNDING == "stochastic":
        words = mixed_words(index * 0x9E3779B9 + mixed_words(salt))
        pulses = tl.floor(size + (words >> 8).to(tl.float32) * 5.9604644775390625e-08)
    elif ROUNDING == "nearest":
        pulses = tl.floor(size + 0.5)
    elif ROUNDING == "sign":
        pulses = tl.where(size > threshold, 1.0, 0.0)
    else:
        pulses = size
    return tl.where(pulses > 0.0, tl.minimum(pulses, max_pulses), 0.0), pulses > max_pulses


@triton.jit
def _add(counts, place: tl.constexpr, number):
    if number > 0:
        tl.atomic_add(counts + place, number.to(tl.int64), sem="relaxed")


@triton.jit
def _load(map, offsets, inside, GIVEN: tl.constexpr):
    values = 1.0
    if GIVEN:
        values = tl.load(map + offsets, mask=inside)
    return values


@triton.jit
def _noisy(x_rate, y_rate, index, salt, c2c, purpose: tl.constexpr, NOISY: tl.constexpr):
    """Return what a pulse is worth for each device of a pair, this time."""
    if NOISY:
        x_noise, y_noise = _normals(index, salt, purpose)
        x_rate = tl.maximum(1.0 + c2c * x_noise, 0.0) * x_rate
        y_rate = tl.maximum(1.0 + c2c * y_noise, 0.0) * y_rate
    return x_rate, y_rate


@triton.jit
def _pulse_pair(x, y, pulses, grows, x_worth, y_worth, nu_up, nu_down, x_nu, y_nu, n_states, KIND, MODE: tl.constexpr):
    """Give pulses to one or both devices of each pair."""
    if MODE == "rising" or MODE == "falling":
        x_given = tl.where(grows == (MODE == "rising"), pulses, 0.0)
        x = moved(x, x_given * x_worth, MODE == "rising", nu_up, nu_down, x_nu, n_states, KIND)
        y = moved(y, (pulses - x_given) * y_worth, MODE == "rising", nu_up, nu_down, y_nu, n_states, KIND)
    else:
        x = moved(x, pulses * x_worth, grows, nu_up, nu_down, x_nu, n_states, KIND)
        if MODE == "both":
            y = moved(y, pulses * y_worth, grows == 0, nu_up, nu_down, y_nu, n_states, KIND)
    return x, y


@triton.jit(do_not_specialize=["salt", "start"])
def pulse_update_fwd_kernel(
    weight, grad, plus, minus, counts, plus_nu, minus_nu, plus_rate, minus_rate, plus_range, minus_range, start, numel,
    gain, w_scale, nu_up, nu_down, n_states, max_pulses, threshold, c2c, high, low, salt,
    KIND: tl.constexpr, MODE: tl.constexpr, ROUNDING: tl.constexpr, REFRESH: tl.constexpr, NOISY: tl.constexpr,
    NUS: tl.constexpr, RATES: tl.constexpr, RANGES: tl.constexpr, EVEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update one block of pairs, see [`pulse_update_reference`][]; all arithmetic in fp32.

    ``counts`` are int64 [4], ``start`` is the first block, ``salt`` has 31 bits, of tensor and step. NOISY says that
    c2c is not 0; NUS, RATES and RANGES that devices have their own; EVEN that every program has BLOCK pairs: without
    masks, accesses are 128 bits wide.
    """
    PAIR: tl.constexpr = MODE != "single"
    offsets = (start + tl.program_id(0)).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = None if EVEN else offsets < numel
    index = offsets.to(tl.uint32)
    q = tl.load(grad + offsets, mask=inside, other=None if EVEN else 0.0).to(tl.float32) * gain
    pulses, capped = _pulses(tl.abs(q), index, salt, max_pulses, threshold, ROUNDING)
    x = tl.load(plus + offsets, mask=inside)
    y = tl.load(minus + offsets, mask=inside) if PAIR else x
    x_nu, y_nu = _load(plus_nu, offsets, inside, NUS), _load(minus_nu, offsets, inside, NUS and PAIR)
    x_rate, y_rate = _load(plus_rate, offsets, inside, RATES), _load(minus_rate, offsets, inside, RATES and PAIR)
    x_range, y_range = _load(plus_range, offsets, inside, RANGES), _load(minus_range, offsets, inside, RANGES and PAIR)
    x_worth, y_worth = _noisy(x_rate, y_rate, index, salt, c2c, 1, NOISY)
    x, y = _pulse_pair(
        x, y, pulses, q > 0.0, x_worth, y_worth, nu_up, nu_down, x_nu, y_nu, n_states, KIND, MODE
    )  # fmt: skip
    _add(counts, 1, tl.sum(capped.to(tl.int32)))
    _add(counts, 3, tl.sum((pulses > 0.0).to(tl.int32)))
    given = tl.ceil(2.0 * pulses if MODE == "both" else pulses)
    if REFRESH != "never":
        RISING: tl.constexpr = MODE == "rising"
        x_fill, y_fill = (x, y) if RISING else (1.0 - x, 1.0 - y)
        chosen = (tl.maximum(x_fill, y_fill) >= high) & (tl.minimum(x_fill, y_fill) >= low)
        if RATES:
            chosen = chosen & (x_rate != 0.0) & (y_rate != 0.0)
        if not EVEN:
            chosen = chosen & inside
        x_worth, y_worth = _noisy(x_rate, y_rate, index, salt, c2c, 2, NOISY)
        new_x, new_y, rewritten = written(
            x * x_range - y * y_range, x_range, y_range, x_worth, y_worth, nu_up if RISING else nu_down, x_nu, y_nu,
            n_states, KIND, RISING, REFRESH == "pulsed",
        )  # fmt: skip
        x, y = tl.where(chosen, new_x, x), tl.where(chosen, new_y, y)
        given += tl.where(chosen, rewritten, 0.0)
        _add(counts, 2, tl.sum(chosen.to(tl.int32)))
    _add(counts, 0, tl.sum(given.to(tl.int32)))
    tl.store(plus + offsets, x, mask=inside)
    if PAIR:
        tl.store(minus + offsets, y, mask=inside)
    tl.store(weight + offsets, w_scale * (x * x_range - (y * y_range if PAIR else 0.5)), mask=inside)


def launch_pulse_update(
    weight: Tensor,
    grad: Tensor,
    states: Sequence[Tensor],
    counts: Tensor,
    response: Response,
    mode: str,
    rule: PulseRule,
    maps: DeviceMaps,
    gain: float,
    w_scale: float,
    seed: int,
) -> None:
    """Run the kernel over one array of devices; arguments as in [`pulse_update`][]."""
    numel, grad = weight.numel(), grad.contiguous()
    block, warps = pick_config(numel, WARP_SIZE)
    pairs = [list(pair) or [weight] for pair in (states, maps.nus, maps.rates, maps.ranges)]
    used = {"rising": (response.nu_up,), "falling": (response.nu_down,)}.get(mode, (response.nu_up, response.nu_down))
    (plus, minus), nus, rates, ranges = [(pair[0], pair[-1]) for pair in pairs]
    constants = {
        "KIND": "linear" if max(used) == 0.0 else response.kind,
        "MODE": mode,
        "ROUNDING": rule.rounding,
        "REFRESH": rule.refresh if mode in ("rising", "falling") else "never",
        "NOISY": response.c2c > 0.0,
        "NUS": bool(len(maps.nus)),
        "RATES": bool(len(maps.rates)),
        "RANGES": bool(len(maps.ranges)),
    }
    numbers = (gain, w_scale, *(max(nu, SMALLEST_NU) for nu in (response.nu_up, response.nu_down)), response.n_states)
    numbers += (float(rule.max_pulses), rule.threshold, response.c2c, rule.high, rule.low)
    with torch.cuda.device_of(weight):
        for first, programs, even in ((0, numel // block, True), (numel // block, int(numel % block > 0), False)):
            if programs:
                pulse_update_fwd_kernel[(programs,)](
                    weight, grad, plus, minus, counts, *nus, *rates, *ranges, first, numel, *numbers, seed,
                    **constants, EVEN=even, BLOCK=block, num_warps=warps,
                    enable_fp_fusion=False,  # |q| + u is rounded like the reference's, so that pulses are the same
                )  # fmt: skip


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: the usual one and its tail, both directions, and all that devices can do."""
    block, warps = pick_config(1, warp_size)
    rows = []
    for name, kind, mode, refresh, varied, even in (
        ("soft rising", "soft", "rising", "ideal", False, True),
        ("exp both", "exp", "both", "never", False, True),
        ("soft falling, varied", "soft", "falling", "pulsed", True, True),
        ("soft rising", "soft", "rising", "ideal", False, False),
    ):
        tensors = ("weight", "grad", "plus", "minus", "plus_nu", "minus_nu", "plus_rate", "minus_rate")
        floats = ("gain", "w_scale", "nu_up", "nu_down", "n_states", "max_pulses", "threshold", "c2c", "high", "low")
        signature: dict[str, str] = dict.fromkeys((*tensors, "plus_range", "minus_range"), "*fp32")
        signature |= {"counts": "*i64", "start": "i32", "numel": "i32", "salt": "i32", **dict.fromkeys(floats, "fp32")}
        constants: dict[str, Any] = {"KIND": kind, "MODE": mode, "ROUNDING": "stochastic", "REFRESH": refresh}
        constants |= {"NOISY": varied, "NUS": varied, "RATES": varied, "RANGES": varied, "EVEN": even, "BLOCK": block}
        rows.append(
            Row(
                name=name,
                kernel=pulse_update_fwd_kernel,
                signature=signature,
                constexprs=constants,
                num_warps=warps,
                registers=REGISTERS_VARIED if varied else REGISTERS,
                even=even,
                loads=(block * 4,) * (9 if varied else 3),
                stores=(block * 4,) * 3,
            )
        )
    return rows
