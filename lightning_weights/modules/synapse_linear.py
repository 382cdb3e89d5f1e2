"""A linear layer whose weights are conductances of devices."""

from typing import Literal

from torch import Tensor, nn

from lightning_weights.modules.device_model import DeviceModel
from lightning_weights.modules.synapse_layer import SynapseLayer
from lightning_weights.modules.synapse_settings import SynapseSettings


class SynapseLinear(SynapseLayer, nn.Linear):
    r"""Apply a linear layer whose weights are read out of pairs of electronic devices.

    $$w_{ij} = \gamma\,(x^+_{ij} - x^-_{ij}), \qquad x = \frac{G - G_{min}}{G_{max} - G_{min}} \in [0, 1]$$

    ``weight`` and ``bias`` have the names and shapes of ``nn.Linear``; the states of the devices are buffers of
    ``weight_devices`` and ``bias_devices``, and a checkpoint holds both. Train it with ``PulseSGD``. Hidden activations
    in [0, 1], such as ``nn.Hardtanh(0, 1)``, can be encoded as pulse widths.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        bias: Whether there is one more row of devices, whose input is always on.
        device: The devices: a ``DeviceModel`` or a mapping of its arguments. ``None``: the default one.
        mode: How pairs are updated: ``unidirectional`` raises one of both, ``bidirectional`` raises one and lowers the
            other, ``single`` raises or lowers a single device, which is read against a fixed reference.
        w_scale: γ > 0, the weight of a full range. ``None``: 7.5 √(2 / in_features).
        branch: For ``unidirectional``: ``ltp`` raises the device on the side of the change, ``ltd`` lowers the other.
        split: For ``bidirectional``: whether each device takes half of a change, instead of the whole.
        input_bits: Bits of the inputs, from 2. ``None``: exact.
        error_bits: Bits of the errors that come back, from 2. ``None``: exact.
        seed: Of what differs from device to device.

    Raises:
        ValueError: If an argument is out of range.

    Source: Lim et al. 2017, arXiv:1707.06381; see ``PulseSGD``.

    Examples:
        >>> import torch
        >>> layer = SynapseLinear(4, 2, w_scale=2.0)
        >>> array = layer.weight_devices
        >>> torch.equal(layer.weight, 2.0 * (array.plus - array.minus))
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: DeviceModel | None = None,
        mode: Literal["unidirectional", "bidirectional", "single"] = "unidirectional",
        w_scale: float | None = None,
        branch: Literal["ltp", "ltd"] = "ltp",
        split: bool = False,
        input_bits: int | None = None,
        error_bits: int | None = None,
        seed: int = 0,
    ) -> None:
        settings = SynapseSettings(DeviceModel.of(device), mode, w_scale, branch, split, input_bits, error_bits, seed)
        nn.Linear.__init__(self, in_features, out_features, bias)
        self._configure(settings)
        self._draw_weights()
        self._put_devices()

    @classmethod
    def from_layer(cls, layer: nn.Linear, settings: SynapseSettings) -> "SynapseLinear":
        """Return a layer with the weights of a plain one, whose parameters it takes over.

        Args:
            layer: A linear layer with values.
            settings: How its synapses are made.

        Warns:
            LightningWeightsWarning: If weights are clipped.
        """
        made = cls.__new__(cls)
        nn.Linear.__init__(made, layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        made._configure(settings)
        made._put_devices()
        return made.train(layer.training)

    def plain(self) -> nn.Linear:
        """Return a plain linear layer with a copy of the weights that the devices read out to."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        return self._give_values(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of shape (..., out_features) of inputs of shape (..., in_features)."""
        return self._give_out(nn.functional.linear(self._take_in(x), self.weight, self.bias))

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return f"{nn.Linear.extra_repr(self)}, {self._describe()}"
