"""A linear layer that computes with quantized weights and inputs."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_weights.modules.fake_quantized import FakeQuantized, make_weight_quantizer, widen
from lightning_weights.modules.input_quantizer import InputQuantizer


class FakeQuantLinear(FakeQuantized, nn.Linear):
    """Apply a linear layer with quantized weights to quantized inputs, both as floating-point numbers.

    Weight and bias have the names of ``nn.Linear``, so that its checkpoints load with ``strict=False``.

    Args:
        in_features: Length of the inputs.
        out_features: Number of outputs.
        bias: Whether the outputs have a bias, which is not quantized.
        weight_bits: From 2 to 8; ``None`` leaves the weight as it is.
        act_bits: From 2 to 8; ``None`` leaves the inputs as they are.
        weight_quantizer: ``statsq`` for a scale from statistics, ``lsq`` for a learned one.
        granularity: Which inputs have a step in common, as of
            [`LSQQuantizer`][lightning_weights.modules.LSQQuantizer].
        signed: Whether inputs have negative codes; those behind a GELU do without.

    Raises:
        ValueError: If an argument is not allowed.

    Source: Liu, Liu & Cheng 2023, arXiv:2302.02210.

    Examples:
        >>> layer = FakeQuantLinear(8, 3, weight_bits=2)
        >>> max(len(row.unique()) for row in layer.quantized_weight()) <= 4
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        weight_bits: int | None = 2,
        act_bits: int | None = None,
        weight_quantizer: Literal["statsq", "lsq"] = "statsq",
        granularity: Literal["tensor", "token", "channel"] = "token",
        signed: bool = True,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.weight_quantizer = make_weight_quantizer(weight_quantizer, weight_bits)
        self.input_quantizer = None if act_bits is None else InputQuantizer(in_features, act_bits, signed, granularity)

    @classmethod
    def from_layer(cls, layer: nn.Linear, **options: Any) -> "FakeQuantLinear":
        """Return a layer with the parameters of a plain one, the same objects.

        Args:
            layer: Any ``nn.Linear``.
            **options: Arguments of the constructor behind ``bias``.
        """
        with torch.device("meta"):
            quantized = cls(layer.in_features, layer.out_features, layer.bias is not None, **options)
        take_parameters(quantized, layer)
        return quantized

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of shape (..., out_features) for inputs of shape (..., in_features)."""
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.quantized_weight().to(x.dtype), bias)


def take_parameters(quantized: Any, layer: Any) -> None:
    """Give a quantized layer made on the meta device the parameters of a plain one, and start its quantizers.

    Args:
        quantized: The quantized layer.
        layer: The plain one.
    """
    quantized.weight, quantized.bias = layer.weight, layer.bias
    widen(quantized.weight)
    if quantized.input_quantizer is not None:
        quantized.input_quantizer.to_empty(device=layer.weight.device).reset_parameters()
    if quantized.weight_quantizer is not None:
        quantized.weight_quantizer.to_empty(device=layer.weight.device)
        with torch.no_grad():
            quantized.quantized_weight()  # learned steps follow from the weight
    quantized.train(layer.training)
