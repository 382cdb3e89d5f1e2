"""A convolution whose weights are conductances of devices."""

from typing import Literal

from torch import Tensor, nn

from lightning_weights.modules.device_model import DeviceModel
from lightning_weights.modules.synapse_layer import SynapseLayer
from lightning_weights.modules.synapse_settings import SynapseSettings


class SynapseConv2d(SynapseLayer, nn.Conv2d):
    r"""Apply a two-dimensional convolution whose weights are read out of pairs of electronic devices.

    $$w = \gamma\,(x^+ - x^-), \qquad x = \frac{G - G_{min}}{G_{max} - G_{min}} \in [0, 1]$$

    Everything else is as in ``SynapseLinear``: every place of the image goes through the same devices, and their pulses
    are counted from the sum of its gradients.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel.
        stride: Step of the kernel.
        padding: Rows and columns added on every side, ``same`` or ``valid``.
        dilation: Distance between the points of the kernel.
        groups: Groups of channels that are convolved apart.
        bias: Whether there is one more row of devices, whose input is always on.
        padding_mode: What is added: ``zeros``, ``reflect``, ``replicate`` or ``circular``.
        device: The devices: a ``DeviceModel`` or a mapping of its arguments. ``None``: the default one.
        mode: How pairs are updated: ``unidirectional`` raises one of both, ``bidirectional`` raises one and lowers the
            other, ``single`` raises or lowers a single device, which is read against a fixed reference.
        w_scale: γ > 0, the weight of a full range. ``None``: 7.5 √(2 / fan-in).
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
        >>> SynapseConv2d(1, 4, 3, padding=1)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
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
        nn.Conv2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        )
        self._configure(settings)
        self._draw_weights()
        self._put_devices()

    @classmethod
    def from_layer(cls, layer: nn.Conv2d, settings: SynapseSettings) -> "SynapseConv2d":
        """Return a layer with the weights of a plain one, whose parameters it takes over.

        Args:
            layer: A convolution with values.
            settings: How its synapses are made.

        Warns:
            LightningWeightsWarning: If weights are clipped.
        """
        made = cls.__new__(cls)
        _shape_like(made, layer)
        made.weight, made.bias = layer.weight, layer.bias
        made._configure(settings)
        made._put_devices()
        return made.train(layer.training)

    def plain(self) -> nn.Conv2d:
        """Return a plain convolution with a copy of the weights that the devices read out to."""
        layer = nn.Conv2d.__new__(nn.Conv2d)
        _shape_like(layer, self)
        return self._give_values(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of shape (N, out_channels, H', W') of inputs of shape (N, in_channels, H, W)."""
        return self._give_out(self._conv_forward(self._take_in(x), self.weight, self.bias))

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return f"{nn.Conv2d.extra_repr(self)}, {self._describe()}"


def _shape_like(new: nn.Conv2d, layer: nn.Conv2d) -> None:
    """Construct a convolution without values of the shape of another."""
    nn.Conv2d.__init__(
        new, layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        layer.groups, layer.bias is not None, layer.padding_mode, device="meta",
    )  # fmt: skip
