"""The pulse update without Triton: on CPUs only pairs that get a pulse or a refresh are computed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_weights.kernels._mixing import GOLDEN_RATIO, WORD, mixed
from lightning_weights.kernels.pulse_update.config import DeviceMaps, PulseRule
from lightning_weights.kernels.pulse_update.noise import ROUNDING, UPDATE, normal_pair
from lightning_weights.kernels.pulse_update.pairs import difference, effective, move, nu_factors, share
from lightning_weights.kernels.pulse_update.reference import pulse_update_reference, rounded
from lightning_weights.kernels.pulse_update.refresh import refreshed
from lightning_weights.kernels.pulse_update.responses import Response

Places = Tensor | None  # None: everywhere

PER_DEVICE = ("nus", "rates", "ranges")
FEW = 4  # pairs that get a pulse are picked out where they are fewer than one in this many,
SMALL = 1 << 13  # and not in pieces as small as this, where every call costs more than the arithmetic
CHUNK = 1 << 16  # pairs looked at a time: what one operation wrote is still in the cache when the next reads it


@torch.inference_mode()  # spares every call the autograd layers; version counters still advance
def update_in_pieces(
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
    """Update CPU tensors in place, a cache-sized piece at a time; arguments as in [`pulse_update`][].

    Weights of pairs that neither get a pulse nor are refreshed keep their bits: they are read out already.
    """
    flat_grad, flat_weight = grad.reshape(-1), weight.view(-1)
    flat_states = [x.view(-1) for x in states]
    flat_maps = _each(maps, lambda m: m.view(-1))
    counted = [0, 0, 0, 0]
    for start in range(0, flat_grad.numel(), CHUNK):
        w, g, *xs = (_piece(x, start) for x in (flat_weight, flat_grad, *flat_states))
        own = _each(flat_maps, functools.partial(_piece, start=start))
        q = g.to(xs[0].dtype) * gain
        pulses = _pulses(q.abs(), start, rule, seed, counted)
        if pulses is not None:
            moved = None if len(q) <= SMALL else pulses.nonzero().squeeze(1)
            counted[3] += int(pulses.count_nonzero()) if moved is None else len(moved)
            places = None if moved is None or FEW * len(moved) > len(q) else moved
            counted[0] += _give(xs, places, start, q, pulses, response, mode, own, seed)
            _read(w, xs, places, own, w_scale)
        if rule.refresh != "never" and mode in ("rising", "falling"):
            _refresh(w, xs, start, counted, response, mode, rule, own, w_scale, seed)
    counts.add_(torch.tensor(counted))


def update_asynchronously(
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
    """Update tensors of an accelerator without waiting for it; arguments as in [`pulse_update`][]."""
    kinds = {"response": response, "mode": mode, "rule": rule, "gain": gain, "w_scale": w_scale, "seed": seed}
    new_weight, new_states, new_counts = pulse_update_reference(grad, states, maps=maps, **kinds)  # type: ignore[arg-type]
    weight.copy_(new_weight)
    for x, new in zip(states, new_states, strict=True):
        x.copy_(new)
    counts.add_(new_counts)


def _piece(x: Tensor, start: int) -> Tensor:
    return x if len(x) <= CHUNK else x[start : start + CHUNK]


def _at(x: Tensor, places: Places) -> Tensor:
    return x if places is None else x[places]


def _each(maps: DeviceMaps, change: Callable[[Tensor], Tensor]) -> DeviceMaps:
    """Return maps of other devices, or the same ones in another form."""
    if not any(len(getattr(maps, name)) for name in PER_DEVICE):
        return maps
    return maps._replace(**{name: [change(m) for m in getattr(maps, name)] for name in PER_DEVICE})


def _pulses(size: Tensor, start: int, rule: PulseRule, seed: int, counted: list[int]) -> Tensor | None:
    """Return the pulses of a piece as `pulse_counts` does, or None if there are none."""
    noise = _uniform(start, len(size), seed) if rule.rounding == "stochastic" else size
    pulses = rounded(size, rule, noise)
    largest = float(pulses.max())
    if largest == 0.0:
        return None
    if not largest <= rule.max_pulses:  # or it is NaN
        counted[1] += int((pulses > rule.max_pulses).sum())
        pulses = pulses.nan_to_num(0.0).clamp(max=rule.max_pulses)
    return pulses


def _give(
    xs: Sequence[Tensor],
    places: Places,
    start: int,
    q: Tensor,
    pulses: Tensor,
    response: Response,
    mode: str,
    maps: DeviceMaps,
    seed: int,
) -> int:
    """Give pulses to some pairs of a piece; return how many."""
    olds, maps = [_at(x, places) for x in xs], _each(maps, lambda m: _at(m, places))
    grows, pulses = _at(q, places) > 0, _at(pulses, places)
    table = maps.table[0] if maps.table else None
    normals: Sequence[Tensor | None] = (None, None)
    if response.c2c:
        index = torch.arange(start, start + len(q)) if places is None else places + start
        normals = normal_pair(index, seed, UPDATE)
    if mode in ("rising", "falling"):  # only one device of a pair gets any, so that one curve is computed for both
        first = grows if mode == "rising" else ~grows
        maps, noise, x = _chosen(first, maps, normals, olds)
        own = effective(pulses, response, noise, maps, 0)
        new = move(x, own, mode == "rising", response, nu_factors(maps, 0), table)
        _put(xs[0], places, torch.where(first, new, olds[0]))
        _put(xs[1], places, torch.where(first, olds[1], new))
        return int(pulses.ceil().sum(dtype=torch.float64))
    total = torch.zeros_like(pulses)
    for device, x in enumerate(xs):
        given, up = share(mode, device, pulses, grows)
        total += given
        own = effective(given, response, normals[device], maps, device)
        _put(x, places, move(olds[device], own, up, response, nu_factors(maps, device), table))
    return int(total.ceil_().sum(dtype=torch.float64))


def _chosen(
    first: Tensor, maps: DeviceMaps, normals: Sequence[Tensor | None], xs: Sequence[Tensor]
) -> tuple[DeviceMaps, Tensor | None, Tensor]:
    """Return what belongs to the first device of each pair where it is chosen, and to the second elsewhere."""
    pairs = {name: getattr(maps, name) for name in PER_DEVICE}
    own = {name: [torch.where(first, pair[0], pair[1])] if len(pair) else pair for name, pair in pairs.items()}
    one, other = normals
    noise = None if one is None or other is None else torch.where(first, one, other)
    return maps._replace(**own), noise, torch.where(first, xs[0], xs[1])


def _put(x: Tensor, places: Places, values: Tensor) -> None:
    if places is None:
        x.copy_(values)
    else:
        x.scatter_(0, places, values)


def _read(weight: Tensor, xs: Sequence[Tensor], places: Places, maps: DeviceMaps, w_scale: float) -> None:
    values = w_scale * difference([_at(x, places) for x in xs], [_at(r, places) for r in maps.ranges])
    _put(weight, places, values)


def _refresh(
    weight: Tensor,
    xs: Sequence[Tensor],
    start: int,
    counted: list[int],
    response: Response,
    mode: str,
    rule: PulseRule,
    maps: DeviceMaps,
    w_scale: float,
    seed: int,
) -> None:
    """Refresh the full pairs of a piece."""
    full = (torch.maximum(*xs) if mode == "rising" else 1.0 - torch.minimum(*xs)) >= rule.high
    places = full.nonzero().squeeze(1)
    if not len(places):
        return
    few, index = _each(maps, lambda m: m[places]), places + start
    kinds = {"response": response, "mode": mode, "rule": rule, "maps": few, "seed": seed}
    new, chosen, pulses = refreshed([x[places] for x in xs], index, **kinds)  # type: ignore[arg-type]
    counted[0] += int(pulses.sum(dtype=torch.float64)) if rule.refresh == "pulsed" else 0
    counted[2] += int(chosen.sum())
    for x, values in zip(xs, new, strict=True):
        _put(x, places, values)
    _read(weight, xs, places, maps, w_scale)


def _uniform(start: int, count: int, seed: int) -> Tensor:
    """Return what `uniform` returns for consecutive indices, in 32-bit arithmetic, which is faster and wraps alike."""
    words = _steps()[:count] + _signed(start * GOLDEN_RATIO + mixed(seed + ROUNDING))
    scratch = torch.empty_like(words)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        _xor_shifted(words, shift, scratch)
        words.mul_(_signed(factor))
    _xor_shifted(words, 16, scratch)
    return words.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF).to(torch.float32).mul_(2.0**-24)


def _xor_shifted(words: Tensor, shift: int, scratch: Tensor) -> None:
    """Replace w by w ^ (w >> shift), zeros coming in from the left."""
    torch.bitwise_right_shift(words, shift, out=scratch)
    words.bitwise_xor_(scratch.bitwise_and_((1 << (32 - shift)) - 1))


@functools.cache
def _steps() -> Tensor:
    steps = torch.arange(CHUNK, dtype=torch.int64) * GOLDEN_RATIO & WORD
    return torch.where(steps >= 1 << 31, steps - (1 << 32), steps).to(torch.int32)


def _signed(word: int) -> int:
    word &= WORD
    return word - (1 << 32) if word >= 1 << 31 else word
