"""What layers of electronic synapses share: their arrays of devices, and loading them."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.hw_synapse import (
    clipped_share,
    default_scale,
    quantize_errors,
    quantize_inputs,
)
from lightning_weights.modules.synapse_array import SynapseArray, check_finite
from lightning_weights.modules.synapse_settings import SynapseSettings


class SynapseLayer(nn.Module):
    """Base of layers whose ``weight`` and ``bias`` are read out of electronic devices.

    The bias is one more row of devices, whose input is always on. Both parameters are read-outs: gradients are taken
    with respect to what the devices really hold, and only pulses may change them, as ``PulseSGD`` gives them.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def _configure(self, settings: SynapseSettings) -> None:
        self.settings = settings
        for name, param in self._parameters.items():
            if param is not None:
                check_finite(name, param)
        fan_in = self.weight[0].numel()
        self.w_scale = float(default_scale(fan_in) if settings.w_scale is None else settings.w_scale)

    def _draw_weights(self) -> None:
        """Draw weights as He et al. do, within half of the range, from PyTorch's global generator."""
        with torch.no_grad():
            nn.init.kaiming_normal_(self.weight).clamp_(-self.w_scale / 2, self.w_scale / 2)
            if self.bias is not None:
                self.bias.zero_()

    def _put_devices(self) -> None:
        """Put devices behind the parameters, programmed to them."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        self._warn_if_clipped()
        for name, param in self._parameters.items():
            array = None if param is None else SynapseArray(param, self.settings, self.w_scale, generator)
            self.add_module(f"{name}_devices", array)

    def _warn_if_clipped(self) -> None:
        for name, param in self._parameters.items():
            clipped = 0.0 if param is None else clipped_share(param, self.w_scale, self.settings.operator_mode())
            if clipped:
                warnings.warn(
                    f"{clipped:.2%} of the {name} is beyond what devices with w_scale={self.w_scale:g} can hold, and "
                    f"is clipped; use a larger w_scale to keep it",
                    LightningWeightsWarning,
                    stacklevel=5,
                )

    def arrays(self) -> dict[str, SynapseArray]:
        """Return the arrays of devices by the names of their parameters."""
        found = {name: getattr(self, f"{name}_devices") for name in self._parameters}
        return {name: array for name, array in found.items() if array is not None}

    @torch.no_grad()
    def program(self, weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        """Set the devices to given weights, as far as they can hold them.

        Args:
            weight: Weights. ``None``: those that the parameter has, whoever wrote them.
            bias: Bias, in the same way.

        Raises:
            ValueError: If a value is not finite.
        """
        for name, values in (("weight", weight), ("bias", bias)):
            if values is not None:
                check_finite(name, values)
        for name, values in (("weight", weight), ("bias", bias)):
            if values is not None:
                getattr(self, name).copy_(values)
        self._warn_if_clipped()
        for name, array in self.arrays().items():
            array.program(getattr(self, name))

    def _take_in(self, x: Tensor) -> Tensor:
        """Check the read-outs, and encode inputs."""
        if self.training and not torch.compiler.is_compiling():
            for name, array in self.arrays().items():
                array.check_untouched(getattr(self, name))
        bits = self.settings.input_bits
        return x if bits is None else quantize_inputs(x, bits)

    def _give_out(self, y: Tensor) -> Tensor:
        bits = self.settings.error_bits
        return y if bits is None else quantize_errors(y, bits)

    def _give_values(self, layer: Any) -> Any:
        """Fill a plain layer that has no values yet with a copy of the read-outs."""
        for name, param in self._parameters.items():
            if param is not None:
                copy = nn.Parameter(param.detach().clone(), requires_grad=param.requires_grad)
                layer.register_parameter(name, copy)
        return layer.train(self.training)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, array in self.arrays().items():
            array.claim(getattr(self, name))

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the states in a checkpoint mean."""
        return {"w_scale": self.w_scale, **self.settings.as_dict()}

    def set_extra_state(self, state: Any) -> None:
        """Accept what was compared before anything was loaded."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        saved = state_dict.get(f"{prefix}_extra_state")
        if saved is not None:
            differences = self.settings.differences(saved)
            if saved["w_scale"] != self.w_scale:
                differences.append(f"w_scale is {self.w_scale!r}, was {saved['w_scale']!r}")
            if differences:
                raise ValueError(
                    f"the checkpoint of {prefix.rstrip('.') or 'the layer'} was made with other devices: "
                    f"{'; '.join(differences)}. Use the same, or load only weights and program() them"
                )
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _describe(self) -> str:
        device = self.settings.device
        return f"{device.kind}, {self.settings.mode}, n_states={device.n_states}, w_scale={self.w_scale:g}"
