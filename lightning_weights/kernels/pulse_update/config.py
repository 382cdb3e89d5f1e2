"""What an update of pulses is told, besides the tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

# Which devices of a pair learn, and in which direction: both only rise, both only fall, both go both ways, or the
# second is a fixed reference.
MODES = ("rising", "falling", "both", "single")
ROUNDINGS = ("stochastic", "nearest", "sign", "none")
REFRESHES = ("never", "ideal", "pulsed")
REFERENCE = 0.5  # state of the fixed reference of ``single``


class PulseRule(NamedTuple):
    """How wanted changes become pulses, and when pairs are refreshed.

    Attributes:
        rounding: ``stochastic``, ``nearest``, ``sign`` (one pulse beyond ``threshold``) or ``none`` (real numbers).
        max_pulses: Most pulses that one update gives to a device.
        threshold: For ``sign``, in pulses.
        refresh: ``never``, ``ideal`` or ``pulsed``.
        high: A pair is refreshed if its fuller device is at least here.
        low: And if its emptier one is at least here.

    Examples:
        >>> PulseRule("nearest").max_pulses
        10
    """

    rounding: str = "stochastic"
    max_pulses: int = 10
    threshold: float = 0.5
    refresh: str = "never"
    high: float = 0.9
    low: float = 0.0


class DeviceMaps(NamedTuple):
    """How devices differ from each other: for every quantity nothing, or a tensor for each device of the pair.

    Attributes:
        nus: Factors of the non-linearity.
        rates: Factors of what a pulse counts; 0 for a stuck device.
        ranges: Factors of the range of conductance.
        table: For ``table``: pulses, and states for rising and for falling, as rows of one tensor.

    Examples:
        >>> DeviceMaps().rates
        ()
    """

    nus: Sequence[Tensor] = ()
    rates: Sequence[Tensor] = ()
    ranges: Sequence[Tensor] = ()
    table: Sequence[Tensor] = ()
