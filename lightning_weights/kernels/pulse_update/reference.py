"""Specification of the pulse update in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.kernels.pulse_update.config import DeviceMaps, PulseRule
from lightning_weights.kernels.pulse_update.noise import UPDATE, normal_pair, uniform
from lightning_weights.kernels.pulse_update.pairs import effective, move, nu_factors, read_out, share
from lightning_weights.kernels.pulse_update.refresh import refreshed
from lightning_weights.kernels.pulse_update.responses import Response


def pulse_counts(size: Tensor, rule: PulseRule, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Turn sizes of wanted changes, in pulses, into pulses.

    Args:
        size: |q| ≥ 0; NaN gives no pulse.
        rule: How to round, and the largest number.
        noise: Uniform in [0, 1), for stochastic rounding.

    Returns:
        The pulses, in the dtype of ``size``, and where the largest number was exceeded.

    Examples:
        >>> size, noise = torch.tensor([0.4, 0.4, 20.0]), torch.tensor([0.5, 0.7, 0.0])
        >>> pulse_counts(size, PulseRule(), noise)[0]
        tensor([ 0.,  1., 10.])
    """
    pulses = rounded(size, rule, noise)
    capped = pulses > rule.max_pulses
    return torch.where(pulses > 0, pulses.clamp(max=rule.max_pulses), 0.0), capped


def rounded(size: Tensor, rule: PulseRule, noise: Tensor) -> Tensor:
    """Return pulses as [`pulse_counts`][] does, but for the largest number and for NaN."""
    if rule.rounding == "stochastic":
        return (size + noise.to(size.dtype)).floor()
    if rule.rounding == "nearest":
        return (size + 0.5).floor()
    return (size > rule.threshold).to(size.dtype) if rule.rounding == "sign" else size


def pulse_update_reference(
    grad: Tensor,
    states: Sequence[Tensor],
    *,
    response: Response,
    mode: str,
    rule: PulseRule,
    gain: float,
    w_scale: float,
    seed: int = 0,
    maps: DeviceMaps | None = None,
    index: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Compute one update out of place: the specification of the operator.

    The wanted change is q = gain·g pulses, its size becomes k pulses, and these move one or both devices of the pair,
    from wherever they are. Then, for ``rising`` and ``falling``, full pairs are refreshed.

    Args:
        grad: Gradient g of the weights.
        states: x⁺ and x⁻ in [0, 1], or x⁺ alone for ``single``, fp32 or fp64. The arithmetic happens in their dtype.
        response: How devices answer to pulses.
        mode: One of `MODES`.
        rule: How changes become pulses, and when pairs are refreshed.
        gain: Pulses per unit of gradient: -ηN/γ.
        w_scale: γ.
        seed: Of this tensor and step; the noise is a function of it and the element's index.
        maps: How devices differ; None if they do not.
        index: Index of each element; None counts them.

    Returns:
        The weights γ(x⁺ - x⁻), the states, and four counts: pulses, weights that exceeded the largest number, pairs
        refreshed, weights that got a pulse.

    Examples:
        >>> x = torch.tensor([0.25, 0.25])
        >>> rule = PulseRule(rounding="nearest")
        >>> kinds = {"response": Response("linear", n_states=16), "mode": "rising", "rule": rule}
        >>> w, states, counts = pulse_update_reference(torch.tensor([-2.0, 1.0]), [x, x], **kinds, gain=-2, w_scale=1)
        >>> w, states[0], counts
        (tensor([ 0.2500, -0.1250]), tensor([0.5000, 0.2500]), tensor([6, 0, 0, 2]))
    """
    maps = DeviceMaps() if maps is None else maps
    if index is None:
        index = torch.arange(grad.numel(), device=grad.device).view(grad.shape)
    wanted = grad.to(states[0].dtype) * gain
    noise = uniform(index, seed) if rule.rounding == "stochastic" else wanted
    pulses, capped = pulse_counts(wanted.abs(), rule, noise)
    normals = normal_pair(index, seed, UPDATE) if response.c2c else (None, None)
    table = maps.table[0] if maps.table else None
    new: Sequence[Tensor] = []
    total = torch.zeros_like(pulses)
    for device, x in enumerate(states):
        given, up = share(mode, device, pulses, wanted > 0)
        total = total + given
        own = effective(given, response, normals[device], maps, device)
        new = [*new, move(x, own, up, response, nu_factors(maps, device), table)]
    total, chosen = total.ceil(), torch.zeros_like(capped)
    if rule.refresh != "never" and mode in ("rising", "falling"):
        kinds = {"response": response, "mode": mode, "rule": rule, "maps": maps, "seed": seed}
        new, chosen, rewritten = refreshed(new, index, **kinds)  # type: ignore[arg-type]
        total = total + rewritten
    counts = torch.stack([total.long().sum(), capped.sum(), chosen.sum(), (pulses > 0).sum()])
    return read_out(new, maps.ranges, w_scale), list(new), counts
