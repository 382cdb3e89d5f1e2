"""What the layers of electronic synapses have in common, checked once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lightning_weights.errors import check_choice, check_number
from lightning_weights.modules.device_model import DeviceModel

MODES = ("unidirectional", "bidirectional", "single")
KEPT = ("mode", "branch", "split")  # what states mean depends on these


@dataclass(frozen=True)
class SynapseSettings:
    """How layers of electronic synapses are made.

    Args:
        device: The devices.
        mode: How pairs of devices are updated: ``unidirectional`` raises one of both, ``bidirectional`` raises one and
            lowers the other, ``single`` raises or lowers a single device, which is read against a fixed reference.
        w_scale: γ > 0, the weight of a full range. ``None``: 7.5 √(2 / fan-in).
        branch: For ``unidirectional``: ``ltp`` raises the device on the side of the change, ``ltd`` lowers the other.
        split: For ``bidirectional``: whether each device takes half of a change, instead of the whole.
        input_bits: Bits of what goes into the arrays, from 2. ``None``: exact.
        error_bits: Bits of the errors that come back into them, from 2. ``None``: exact.
        seed: Of what differs from device to device.

    Raises:
        ValueError: If one is out of range or does not belong to the mode.

    Examples:
        >>> SynapseSettings(mode="unidirectional", branch="ltd").operator_mode()
        'falling'
    """

    device: DeviceModel = field(default_factory=DeviceModel)
    mode: Literal["unidirectional", "bidirectional", "single"] = "unidirectional"
    w_scale: float | None = None
    branch: Literal["ltp", "ltd"] = "ltp"
    split: bool = False
    input_bits: int | None = None
    error_bits: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        if self.w_scale is not None:
            check_number("w_scale", self.w_scale, low=0.0, low_allowed=False)
        check_choice("branch", self.branch, ("ltp", "ltd"))
        check_choice("split", self.split, (False, True))
        for name in ("input_bits", "error_bits"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), low=2, high=25, whole=True)
        check_number("seed", self.seed, low=0, whole=True)
        if self.branch == "ltd" and self.mode != "unidirectional":
            raise ValueError(f"branch is 'ltd', but mode={self.mode!r} has no choice; use 'ltp', or 'unidirectional'")
        if self.split and self.mode != "bidirectional":
            raise ValueError(f"split is True, but mode={self.mode!r} has no two devices to share; use 'bidirectional'")

    def operator_mode(self) -> str:
        """Return the name that the operator ``pulse_update`` has for this way to update."""
        if self.mode == "unidirectional":
            return "rising" if self.branch == "ltp" else "falling"
        return "both" if self.mode == "bidirectional" else "single"

    def with_seed(self, seed: int) -> "SynapseSettings":
        """Return the same settings with another seed."""
        return replace(self, seed=seed)

    def as_dict(self) -> dict[str, Any]:
        """Return as plain values what the meaning of states depends on."""
        return {**{name: getattr(self, name) for name in KEPT}, "device": self.device.as_dict()}

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """Name what is different from what other settings' ``as_dict`` returned."""
        own = [
            f"{name} is {getattr(self, name)!r}, was {saved[name]!r}"
            for name in KEPT
            if getattr(self, name) != saved[name]
        ]
        return own + [f"device.{text}" for text in self.device.differences(saved["device"])]
