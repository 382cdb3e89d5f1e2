"""How the integer codes of a network's weights move from one optimizer step to the next."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.functional.ofq import (
    FreezingState,
    OscillationState,
    start_freezing,
    start_oscillation,
    update_freezing,
    update_oscillation,
)
from lightning_weights.modules import FakeQuantized, StatsQuantizer, fake_quantized


class Oscillation:
    """Tracks all quantized weights of a module, by their names as the user knows them.

    Args:
        momentum: m, the weight of one oscillation in the average.
        threshold: Average above which a weight counts as oscillating.
        freeze_threshold: Average above which a code is frozen, if it comes from statistics; ``None``: never.
    """

    def __init__(self, momentum: float, threshold: float, freeze_threshold: float | None = None) -> None:
        self.momentum = momentum
        self.threshold = threshold
        self.freeze_threshold = freeze_threshold
        self.steps = 0
        self._states: dict[str, OscillationState] = {}
        self._freezing: dict[str, FreezingState] = {}
        self._sums: dict[str, Tensor] = {}
        self._last: Tensor = torch.zeros(3, dtype=torch.int64)

    def start(self, module: nn.Module, saved: Mapping[str, Any] | None = None) -> None:
        """Begin with the codes that the weights have, or go on with what ``state_dict`` has returned.

        Args:
            module: The module.
            saved: A state.

        Raises:
            ValueError: If a state is of other weights.
        """
        layers = _tracked(module)
        codes = {name: layer.weight_codes() for name, layer in layers.items()}
        self._states = {name: start_oscillation(code) for name, code in codes.items()}
        if self.freeze_threshold is not None:
            held = [name for name, layer in layers.items() if isinstance(layer.weight_quantizer, StatsQuantizer)]
            self._freezing = {name: start_freezing(codes[name]) for name in held}
        device = next((code.device for code in codes.values()), None)
        self._sums = {name: torch.zeros((), dtype=torch.int64, device=device) for name in ("flips", "oscillations")}
        self._last = torch.zeros(3, dtype=torch.int64, device=device)
        self.steps = 0
        if saved is not None:
            self._restore(saved, layers)

    def _restore(self, saved: Mapping[str, Any], layers: Mapping[str, FakeQuantized]) -> None:
        theirs = saved["layers"]
        for name in {**self._states, **theirs}:
            here = self._states[name].previous.shape if name in self._states else None
            there = theirs[name]["previous"].shape if name in theirs else None
            if here != there:
                raise ValueError(
                    f"the oscillation state in the checkpoint is of other weights: {name} has {_size(there)} there and "
                    f"{_size(here)} here; resume with the arguments of the run that saved it"
                )
        for name, state in self._states.items():
            frozen = self._freezing.get(name)
            for part in (state, frozen) if frozen is not None else (state,):
                for field, tensor in part._asdict().items():
                    tensor.copy_(theirs[name][f"{_PREFIX[type(part)]}{field}"])
            self._hold(layers[name], frozen)
        for name, total in self._sums.items():
            total.fill_(saved[name])
        self.steps = saved["steps"]

    @staticmethod
    def _hold(layer: FakeQuantized, freezing: FreezingState | None) -> None:
        if freezing is not None:
            layer.weight_quantizer.hold(freezing.frozen, freezing.codes)

    @torch.no_grad()
    def step(self, module: nn.Module) -> None:
        """Look at the codes after an optimizer step, and freeze those that oscillate, if asked to."""
        self.steps += 1
        self._last.zero_()
        for name, layer in _tracked(module).items():
            if name not in self._states:
                continue
            state = self._states[name]
            frozen = self._freezing.get(name)
            if frozen is None or self.freeze_threshold is None:
                counts = layer.track(state, self.momentum, self.threshold)
            else:
                codes = layer.weight_codes()
                counts = update_oscillation(codes, state, self.momentum, self.threshold)
                update_freezing(codes, state, frozen, self.momentum, self.freeze_threshold)
                self._hold(layer, frozen)
            self._last += torch.stack([counts.flips, counts.oscillations, counts.oscillating])
        for index, total in enumerate(self._sums.values()):
            total += self._last[index]

    def values(self) -> dict[str, Tensor]:
        """Return shares of all weights: flipped by the last step, oscillating, frozen; and all oscillations so far."""
        size = max(1, sum(state.previous.numel() for state in self._states.values()))
        found = {
            "flips": self._last[0] / size,
            "oscillating": self._last[2] / size,
            "oscillations": self._sums["oscillations"].float(),
        }
        if self._freezing:
            found["frozen"] = torch.stack([state.frozen.sum() for state in self._freezing.values()]).sum() / size
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return everything, as tensors and numbers."""
        parts: dict[str, list[Any]] = {name: [state] for name, state in self._states.items()}
        for name, frozen in self._freezing.items():
            parts[name].append(frozen)
        layers = {
            name: {
                f"{_PREFIX[type(part)]}{field}": tensor for part in found for field, tensor in part._asdict().items()
            }
            for name, found in parts.items()
        }
        return {"steps": self.steps, "layers": layers, **{name: int(total) for name, total in self._sums.items()}}


_PREFIX = {OscillationState: "", FreezingState: "freezing_"}


def _tracked(module: nn.Module) -> dict[str, FakeQuantized]:
    return {plain_name(name): layer for name, layer in fake_quantized(module).items()}


def _size(shape: torch.Size | None) -> str:
    return "no weights" if shape is None else f"a shape of {tuple(shape)}"
