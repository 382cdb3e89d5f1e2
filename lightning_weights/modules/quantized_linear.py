"""A linear layer whose weight is kept as packed codes of a few bits."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.functional.bit_packing import pack_bits, packed_words, unpack_bits
from lightning_weights.functional.column_solver import QuantizedWeight

HALF = (torch.bfloat16, torch.float16)


class QuantizedLinear(nn.Module):
    r"""Apply a linear layer whose weight is kept as codes, which are 2 to 8 bits each and packed without gaps.

    $$y = x \hat W^\top + c, \qquad \hat W_{aj} = s_{a g(j)} \, (k_{aj} - z_{a g(j)})$$

    Every group g of input columns has its scale s and zero z per output. The weight is made from the codes k in every
    forward pass, in fp32, then in the type of the inputs, and dropped again: at rest a layer of 3 bits in groups of 64
    takes 3.7 bits per weight, all included. Inputs get gradients; codes, scales and zeros are fixed.

    A new layer is all zeros, and there to be loaded into: its state dict is the checkpoint, of tensors only. The scales
    stay in fp32 where the layer is converted to half precision, so that the weight is the one that was solved for.

    Args:
        in_features: Length of the inputs.
        out_features: Number of outputs.
        bits: Bits per code, 2 to 8.
        groups: Number of groups of input columns.
        bias: Whether the outputs have a bias.

    Attributes:
        codes: Words of int32, shape (out_features, words), every row packed as ``pack_bits`` does.
        scales: Shape (out_features, groups), fp32.
        zeros: Shape (out_features, groups), uint8.
        g_idx: Group of every input column, int32.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> layer = QuantizedLinear(64, 8, bits=3, groups=2)
        >>> layer(torch.ones(5, 64)).shape, layer.codes.shape
        (torch.Size([5, 8]), torch.Size([8, 6]))
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    g_idx: Tensor
    code_bits: Tensor

    def __init__(self, in_features: int, out_features: int, bits: int = 4, groups: int = 1, bias: bool = True) -> None:
        check_number("in_features", in_features, low=1, whole=True)
        check_number("out_features", out_features, low=1, whole=True)
        check_number("bits", bits, low=2, high=9, whole=True)
        check_number("groups", groups, low=1, high=in_features + 1, whole=True)
        super().__init__()
        self.in_features, self.out_features, self.bits, self.groups = in_features, out_features, bits, groups
        self.register_buffer("codes", torch.zeros(out_features, packed_words(in_features, bits), dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(out_features, groups))
        self.register_buffer("zeros", torch.zeros(out_features, groups, dtype=torch.uint8))
        self.register_buffer("g_idx", torch.zeros(in_features, dtype=torch.int32))
        # words alone don't tell: 8 columns fill the same number with 3 bits as with 4
        self.register_buffer("code_bits", torch.tensor(bits, dtype=torch.uint8))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)

    @classmethod
    def from_quantized(cls, quantized: QuantizedWeight, bits: int, bias: Tensor | None = None) -> "QuantizedLinear":
        """Return a layer that holds a quantized weight.

        Args:
            quantized: What ``quantize_weight`` returned.
            bits: Bits per code.
            bias: Bias of the layer; a parameter is taken over as it is.

        Raises:
            ValueError: If a code has more bits, or a zero is not a whole number from 0 to 255.

        Examples:
            >>> from lightning_weights.functional.column_solver import CompensationConfig, quantize_weight
            >>> config = CompensationConfig(method="rtn", bits=3, group_size=32)
            >>> found = quantize_weight(torch.randn(8, 64), config=config)
            >>> layer = QuantizedLinear.from_quantized(found, bits=3)
            >>> torch.equal(layer.dequantize(), found.dequantized)
            True
        """
        zeros = quantized.zero.clamp(0, 255).to(torch.uint8)
        if not torch.equal(zeros.to(quantized.zero), quantized.zero):
            raise ValueError("zero holds values that are not whole numbers from 0 to 255, which no layer can keep")
        (out_features, in_features), groups = quantized.codes.shape, quantized.scale.shape[1]
        layer = cls(in_features, out_features, bits, groups, bias=False)
        layer.codes = pack_bits(quantized.codes, bits)
        layer.scales, layer.zeros = quantized.scale.float(), zeros
        layer.g_idx = quantized.g_idx.to(torch.int32, copy=True)  # layers that were solved together have one
        layer.code_bits = layer.code_bits.to(layer.codes.device)
        if bias is not None:
            layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias)
        return layer

    @classmethod
    def for_state(cls, state_dict: Mapping[str, Tensor], prefix: str = "") -> "QuantizedLinear":
        """Return a new layer that a state dict fits, to be put in before it is loaded.

        Args:
            state_dict: State dict with a layer's tensors.
            prefix: What the layer's keys start with, ``"encoder.0."`` for instance.

        Raises:
            ValueError: If the state dict has no such layer there.

        Examples:
            >>> saved = QuantizedLinear(64, 8, bits=3, groups=2).state_dict()
            >>> QuantizedLinear.for_state(saved)
            QuantizedLinear(in_features=64, out_features=8, bits=3, groups=2, bias=True)
        """
        needed = [f"{prefix}{name}" for name in ("g_idx", "scales", "code_bits")]
        if missing := [key for key in needed if key not in state_dict]:
            raise ValueError(f"state_dict has no {', '.join(missing)}; allowed is the prefix of a QuantizedLinear")
        g_idx, scales, bits = (state_dict[key] for key in needed)
        return cls(len(g_idx), *scales.shape[:1], int(bits), scales.shape[1], bias=f"{prefix}bias" in state_dict)

    @property
    def weight(self) -> Tensor:
        """The weight, made from the codes whenever it is asked for; to change it changes nothing."""
        return self.dequantize()

    @torch.no_grad()
    def unpack(self) -> Tensor:
        """Return the codes, uint8 of shape (out_features, in_features)."""
        return unpack_bits(self.codes, self.bits, self.in_features)

    @torch.no_grad()
    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight, shape (out_features, in_features).

        Args:
            dtype: Its type; it is made in that of the scales first. ``None``: that of the scales, fp32.
        """
        weight = self.unpack().to(self.scales.dtype)
        weight -= self.zeros.to(weight)[:, self.g_idx]
        weight *= self.scales[:, self.g_idx]
        return weight.to(weight.dtype if dtype is None else dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of shape (..., out_features) of inputs of shape (..., in_features)."""
        return F.linear(x, self.dequantize(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, "
            f"groups={self.groups}, bias={self.bias is not None}"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Convert all tensors, but leave the scales their precision."""
        scales = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype in HALF:
            self.scales = scales.to(self.scales.device)
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        bits = state_dict.get(f"{prefix}code_bits")
        if bits is not None and int(bits) != self.bits:
            arguments[-1].append(
                f"{prefix}codes are of {int(bits)} bits and the layer is of {self.bits}; make it with bits={int(bits)}"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *arguments)
