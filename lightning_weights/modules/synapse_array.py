"""The devices behind one tensor of weights."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.functional.hw_synapse import target_states
from lightning_weights.kernels.pulse_update import DeviceMaps, PulseRule, pulse_update, read_out
from lightning_weights.modules.device_model import LARGEST_NU
from lightning_weights.modules.synapse_settings import SynapseSettings

BASES = {"rising": 0.1, "falling": 0.1, "both": 0.5, "single": 0.5}  # where the emptier device of a pair starts
ROUNDING = 1e-6  # of a weight of full range: what a cast between fp32 and fp64 may leave
COUNTS = ("pulses", "capped", "refreshes", "moved")  # what is counted, in the order of the operator
SMALLEST_NU = 1e-6  # below, curves are lines
RANGES = (0.5, 1.5)  # the least and the most that a device's range is of the nominal one


class SynapseArray(nn.Module):
    """Hold the states of the devices behind one parameter, and give them pulses.

    The parameter is the read-out of the states and belongs to the layer; ``claim`` ties the two. States, the maps of
    how devices differ and the counters of pulses are buffers.

    Args:
        weight: The parameter. The devices are programmed to it, and it becomes what they read out to.
        settings: What the devices are, and how they are updated.
        w_scale: γ, the weight of a full range.
        generator: Draws how devices differ.

    Raises:
        ValueError: If the weight is in 16 bits, not finite, or empty.

    Examples:
        >>> weight = nn.Parameter(torch.tensor([0.5, -0.5]))
        >>> array = SynapseArray(weight, SynapseSettings(), w_scale=2.0)
        >>> array.plus, array.minus
        (tensor([0.3500, 0.1000]), tensor([0.1000, 0.3500]))
    """

    plus: Tensor
    minus: Tensor | None
    counts: Tensor

    def __init__(
        self,
        weight: nn.Parameter,
        settings: SynapseSettings,
        w_scale: float,
        generator: torch.Generator | None = None,
    ) -> None:
        check_precision(weight)
        check_finite("a parameter", weight)
        super().__init__()
        self.device_model = settings.device
        self.w_scale = w_scale
        self.mode = settings.operator_mode()
        self.split = settings.split
        self._response = settings.device.response()
        self._version = -1
        names = ("plus",) if self.mode == "single" else ("plus", "minus")
        self._draw_maps(weight, names, generator)
        curves = settings.device.curves()
        self.register_buffer("table", None if curves is None else curves.to(weight))
        self.register_buffer("counts", torch.zeros(len(COUNTS), dtype=torch.int64, device=weight.device))
        stuck = settings.device.stuck > 0.0
        for name in ("plus", "minus"):
            drawn = _drawn(torch.rand, weight, generator).to(weight) if stuck else 0.0
            self.register_buffer(name, torch.zeros_like(weight.detach()) + drawn if name in names else None)
        self.program(weight)
        self.claim(weight)

    def _draw_maps(self, weight: Tensor, names: tuple[str, ...], generator: torch.Generator | None) -> None:
        device = self.device_model

        def normal() -> Tensor:
            return _drawn(torch.randn, weight, generator).to(weight)

        for name in ("plus", "minus"):
            maps: dict[str, Tensor | None] = dict.fromkeys(("nu", "rate", "range"))
            if name in names:
                if device.d2d_nu:
                    largest = LARGEST_NU / max(device.nu_ltp, device.nu_ltd or 0.0, SMALLEST_NU)
                    maps["nu"] = (device.d2d_nu * normal()).exp().clamp(max=largest)
                if device.d2d_states or device.stuck:
                    maps["rate"] = (-device.d2d_states * normal()).exp()
                    alive = _drawn(torch.rand, weight, generator) >= device.stuck
                    maps["rate"] *= alive.to(weight)
                if device.d2d_range:
                    maps["range"] = (1.0 + device.d2d_range * normal()).clamp(*RANGES)
            for kind, values in maps.items():
                self.register_buffer(f"{name}_{kind}", values)

    @property
    def states(self) -> list[Tensor]:
        """The states of the devices: those of G⁺, and of G⁻ if there are two."""
        return [self.plus] if self.minus is None else [self.plus, self.minus]

    def maps(self) -> DeviceMaps:
        """Return how the devices differ."""
        found = [
            [value for side in ("plus", "minus") if (value := getattr(self, f"{side}_{kind}")) is not None]
            for kind in ("nu", "rate", "range")
        ]
        return DeviceMaps(*found, table=[] if self.table is None else [self.table])

    @torch.no_grad()
    def program(self, weight: Tensor) -> None:
        """Set the devices so that they read out to given weights, as far as their ranges and stuck ones allow.

        Args:
            weight: Weights; they become what the devices read out to.
        """
        maps = self.maps()
        targets = target_states(weight, self.w_scale, self.mode, BASES[self.mode])
        for number, (own, target) in enumerate(zip(self.states, targets, strict=True)):
            x = (target / maps.ranges[number] if maps.ranges else target).clamp(0.0, 1.0)
            if self.device_model.discrete:
                x = self.device_model.nearest(x, up=self.mode != "falling")
            own.copy_(torch.where(maps.rates[number] == 0, own, x) if maps.rates else x)
        weight.copy_(self.read())

    def read(self) -> Tensor:
        """Return what the devices read out to, γ(x⁺ - x⁻)."""
        return read_out(self.states, self.maps().ranges, self.w_scale)

    def claim(self, weight: Tensor) -> None:
        """Tie the parameter to its devices, through a reference that copies and pickles leave out."""
        weight._lw_devices = _Owner(self)

    @torch.no_grad()
    def step(self, weight: Tensor, grad: Tensor, lr: float, rule: PulseRule, seed: int) -> None:
        """Give the pulses of one update, and read the weights out.

        Args:
            weight: The parameter.
            grad: Its gradient.
            lr: η.
            rule: How changes become pulses, and when pairs are refreshed.
            seed: Of this step.

        Raises:
            ValueError: If states are in 16 bits.
        """
        response = self._response
        gain = -lr * response.n_states / self.w_scale * (0.5 if self.split else 1.0)
        pulse_update(
            weight, grad, self.states, self.counts, response=response, mode=self.mode, rule=rule, gain=gain,
            w_scale=self.w_scale, seed=seed, maps=self.maps(),
        )  # fmt: skip
        self._version = weight._version

    def check_untouched(self, weight: Tensor) -> None:
        """Check that nothing but pulses has changed the weights.

        Raises:
            RuntimeError: If the parameter is not what the devices read out to.
            ValueError: If both have been cast to 16 bits.
        """
        check_precision(weight)
        if weight._version == self._version or not isinstance(weight, nn.Parameter):
            return
        if not torch.allclose(weight.detach(), self.read(), rtol=0.0, atol=ROUNDING * self.w_scale):
            raise RuntimeError(
                "the weights are not what their devices read out to: conductances are not gradient-trainable, and "
                "something has written to the parameter. Use PulseSGD as the optimizer, and program() for new weights"
            )
        self._version = weight._version

    @torch.no_grad()
    def saturated(self, threshold: float) -> Tensor:
        """Return the share of pairs with a device that is nearly at the end that learning drives it to.

        Args:
            threshold: Where a rising device counts as saturated; one of the other modes, at either end.
        """
        if self.mode == "rising":
            full = torch.maximum(*self.states) >= threshold
        elif self.mode == "falling":
            full = 1.0 - torch.minimum(*self.states) >= threshold
        else:
            ends = [(x >= threshold) | (x <= 1.0 - threshold) for x in self.states]
            full = ends[0] if len(ends) == 1 else ends[0] | ends[1]
        return full.float().mean()

    def extra_repr(self) -> str:
        """Describe the array in one line."""
        return f"{tuple(self.plus.shape)}, {self.mode}, w_scale={self.w_scale:g}"


def check_finite(name: str, weight: Tensor) -> None:
    """Check that devices can be programmed to given weights.

    Raises:
        ValueError: If there are none, or one is not finite.
    """
    if not weight.numel() or not bool(weight.detach().isfinite().all()):
        found = f"of the shape {tuple(weight.shape)}" if not weight.numel() else "not finite everywhere"
        raise ValueError(f"{name} that devices are to hold is {found}; leave its layer out, or give it other weights")


def check_precision(weight: Tensor) -> None:
    """Check that a parameter with devices is in fp32 or fp64.

    Raises:
        ValueError: If it is not.
    """
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"weights with devices are {weight.dtype}; allowed are float32 and float64, since a pulse may change less "
            f"than 16 bits can tell. Use autocast (precision='bf16-mixed'), which leaves weights as they are"
        )


def _drawn(draw: Callable[..., Tensor], weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return random numbers of a weight's shape, drawn on the CPU: arrays are also made where the default is a GPU."""
    return draw(weight.shape, generator=generator, dtype=torch.float32, device="cpu")


class _Owner:
    """A reference from a parameter to its devices; copies hold nothing until their own layer claims them."""

    def __init__(self, array: SynapseArray | None = None) -> None:
        self.array = (lambda: None) if array is None else weakref.ref(array)

    def __reduce__(self) -> Any:
        return _Owner, ()


def devices_of(weight: Tensor) -> SynapseArray | None:
    """Return the devices behind a parameter, or None for a plain one."""
    owner = getattr(weight, "_lw_devices", None)
    return None if owner is None else owner.array()
