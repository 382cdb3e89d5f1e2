"""A convolution that computes with quantized weights and inputs."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_weights.modules.fake_quant_linear import take_parameters
from lightning_weights.modules.fake_quantized import FakeQuantized, make_weight_quantizer
from lightning_weights.modules.input_quantizer import InputQuantizer


class FakeQuantConv2d(FakeQuantized, nn.Conv2d):
    """Apply a convolution with quantized weights, a scale per output channel, to quantized inputs.

    Weight and bias have the names of ``nn.Conv2d``, so that its checkpoints load with ``strict=False``.

    Args:
        in_channels: Channels of the inputs.
        out_channels: Channels of the outputs.
        kernel_size: Of ``nn.Conv2d``, as are the next five.
        stride: Distance of positions.
        padding: Added on every side.
        dilation: Distance of elements of the kernel.
        groups: Number of groups of channels.
        bias: Whether the outputs have a bias, which is not quantized.
        padding_mode: What is added.
        weight_bits: From 2 to 8; ``None`` leaves the weight as it is.
        act_bits: From 2 to 8; ``None`` leaves the inputs as they are.
        weight_quantizer: ``statsq`` for a scale from statistics, ``lsq`` for a learned one.
        granularity: Whether every input ``channel`` has a step of its own, or the ``tensor`` one.
        signed: Whether inputs have negative codes.

    Raises:
        ValueError: If an argument is not allowed.

    Source: Liu, Liu & Cheng 2023, arXiv:2302.02210, for patch embeddings.

    Examples:
        >>> import torch
        >>> FakeQuantConv2d(1, 4, kernel_size=2, stride=2, weight_bits=8, act_bits=8)(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 4, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | str | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        weight_bits: int | None = 2,
        act_bits: int | None = None,
        weight_quantizer: Literal["statsq", "lsq"] = "statsq",
        granularity: Literal["tensor", "channel"] = "channel",
        signed: bool = True,
    ) -> None:
        geometry: Any = (kernel_size, stride, padding, dilation, groups)
        super().__init__(in_channels, out_channels, *geometry, bias, padding_mode)
        self.weight_quantizer = make_weight_quantizer(weight_quantizer, weight_bits)
        self.input_quantizer = None if act_bits is None else InputQuantizer(in_channels, act_bits, signed, granularity)

    @classmethod
    def from_layer(cls, layer: nn.Conv2d, **options: Any) -> "FakeQuantConv2d":
        """Return a layer with the parameters of a plain one, the same objects.

        Args:
            layer: Any ``nn.Conv2d``.
            **options: Arguments of the constructor behind ``padding_mode``.
        """
        geometry: Any = {
            name: getattr(layer, name)
            for name in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        }
        with torch.device("meta"):
            quantized = cls(layer.in_channels, layer.out_channels, bias=layer.bias is not None, **geometry, **options)
        take_parameters(quantized, layer)
        return quantized

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of shape (N, out_channels, ...) for inputs of shape (N, in_channels, ...)."""
        if self.input_quantizer is not None:
            x = self.input_quantizer(x.movedim(-3, -1)).movedim(-1, -3)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._conv_forward(x, self.quantized_weight().to(x.dtype), bias)
