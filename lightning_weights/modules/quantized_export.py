"""What leaves training: the integers of quantized weights, or a network of plain layers."""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from lightning_weights.functional.ofq import CodedWeight
from lightning_weights.modules.fake_quant_conv import FakeQuantConv2d
from lightning_weights.modules.fake_quant_linear import FakeQuantLinear
from lightning_weights.modules.fake_quantized import fake_quantized
from lightning_weights.modules.qkr_attention import QKRAttention


def export_codes(module: nn.Module) -> dict[str, CodedWeight]:
    """Return the integers and steps of all quantized weights of a network.

    Args:
        module: Network; it is not changed.

    Returns:
        Coded weights by the name of their layer; that of `QKRAttention` is the product of its projections. What
        ``dequantize()`` returns is what the network computes with, bit for bit.

    Examples:
        >>> import torch
        >>> network = nn.Sequential(FakeQuantLinear(4, 2), nn.ReLU())
        >>> coded = export_codes(network)["0"]
        >>> coded.codes.dtype, torch.equal(coded.dequantize(), network[0].quantized_weight())
        (torch.int8, True)
    """
    return {name: part.coded_weight() for name, part in fake_quantized(module).items()}


def merge_quantized(module: nn.Module) -> nn.Module:
    """Replace quantized layers by plain ones whose weights are the quantized ones; outputs stay the same.

    Layers become ``nn.Linear`` and ``nn.Conv2d``. Where inputs are quantized too, their quantizer remains in front, as
    ``quantizer`` of a sequence whose ``layer`` is the plain one.

    Args:
        module: Network, changed in place, or a single layer, which is not.

    Returns:
        The network, or what replaces the layer.

    Examples:
        >>> merge_quantized(nn.Sequential(FakeQuantLinear(4, 2), nn.ReLU()))[0]
        Linear(in_features=4, out_features=2, bias=True)
    """
    if isinstance(module, (FakeQuantLinear, FakeQuantConv2d)):
        return _plain(module)
    for name, part in list(module.named_modules()):
        if isinstance(part, QKRAttention):
            part.merge()
        elif isinstance(part, (FakeQuantLinear, FakeQuantConv2d)):
            module.set_submodule(name, _plain(part))
    return module


def _plain(layer: Any) -> nn.Module:
    if isinstance(layer, FakeQuantLinear):
        plain: Any = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    else:
        geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
        plain = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            *geometry,
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
            device="meta",
        )
    plain.weight, plain.bias = _parameter(layer.quantized_weight(), layer.weight), layer.bias
    plain.train(layer.training)
    if layer.input_quantizer is None:
        return plain
    # a convolution's channels are not its last dimension, where the quantizer has them
    quantizer = layer.input_quantizer if isinstance(layer, FakeQuantLinear) else ChannelsLast(layer.input_quantizer)
    return nn.Sequential(OrderedDict(quantizer=quantizer, layer=plain))


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone(), requires_grad=like.requires_grad)


class ChannelsLast(nn.Module):
    """Apply a module to images as if channels were their last dimension.

    Args:
        module: What is applied.

    Examples:
        >>> import torch
        >>> ChannelsLast(nn.LayerNorm(3))(torch.randn(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of the shape of the inputs, (..., channels, height, width)."""
        return self.module(x.movedim(-3, -1)).movedim(-1, -3)
