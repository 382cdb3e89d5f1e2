"""Convolutions that begin as two halves and grow."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_weights.modules.mixture_layer import MixtureLayer
from lightning_weights.modules.mixture_part import half_of
from lightning_weights.modules.template_bank import TemplateBank


class _MixtureConv(MixtureLayer):
    """A convolution of any dimension."""

    _kind: ClassVar[type[nn.Conv1d] | type[nn.Conv2d]]
    _convolve: ClassVar[Callable[..., Tensor]]

    def _shape(self, in_channels: int, out_channels: int, geometry: dict[str, Any], split: tuple[bool, bool]) -> Any:
        """Take over a plain layer's geometry, and return the shape of a block."""
        plain = self._kind(in_channels, out_channels, **geometry, bias=False, device="meta")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, plain.groups
        self.kernel_size, self.stride, self.padding = plain.kernel_size, plain.stride, plain.padding
        self.dilation, self.padding_mode = plain.dilation, plain.padding_mode
        self._border = tuple(plain._reversed_padding_repeated_twice)
        if self.groups > 1 and self.groups % 2:
            raise ValueError(
                f"groups is {self.groups}, so that a group would straddle the halves of the members; allowed is 1 or "
                f"an even number"
            )
        inputs = half_of("in_channels", in_channels, split[0])
        outputs = half_of("out_channels", out_channels, split[1])
        return outputs, inputs if self.groups == 1 else in_channels // self.groups, *self.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (N, out_channels, ...) of inputs (N, in_channels, ...), halved for members."""
        self._check_channels(x.shape[-1 - len(self.kernel_size)], self.in_channels)
        weight, bias = self._operands(x)
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._border, mode=self.padding_mode), 0
        return type(self)._convolve(x, weight, bias, self.stride, padding, self.dilation, self._current_groups())

    def _current_groups(self) -> int:
        return self.groups if self._mode == "grown" else max(1, self.groups // 2)

    def plain(self) -> nn.Module:
        """Return a plain convolution with a copy of the weight of the current mode."""
        weight, bias = self.weight.detach(), self.bias
        groups = self._current_groups()
        geometry: Any = {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": groups,
            "padding_mode": self.padding_mode,
        }
        layer = self._kind(weight.shape[1] * groups, len(weight), **geometry, bias=bias is not None, device="meta")
        layer.weight = nn.Parameter(weight)
        layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        shape = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{shape}, groups={self.groups}, {self._describe()}"


class MixtureConv1d(_MixtureConv):
    r"""Apply a one-dimensional convolution mixed from templates: half as wide for each member, whole when grown.

    $$W_q = \sum_{t=1}^{K} \alpha_{q,t}\, T_{s(q),t}, \qquad W = \begin{pmatrix} W_0 & W_2 \\ W_3 & W_1 \end{pmatrix}$$

    Of a grouped convolution each member has half of the groups, and growth puts them side by side.

    Args:
        in_channels: Input channels of the grown layer.
        out_channels: Output channels of the grown layer.
        kernel_size: Width of the kernel.
        stride: Step of the kernel.
        padding: Values added on either side, ``same`` or ``valid``.
        groups: Groups of channels that are convolved apart, 1 or an even number.
        num_templates: K, templates of each of two sets.
        split_in: Whether each member has half of the input channels; not so in the first layer of a network.
        split_out: Whether each member has half of the output channels; not so in the last layer.
        template_sets: Which set each block is mixed from: member 0, member 1, upper right, lower left.
        dilation: Distance between the points of the kernel.
        padding_mode: What is added: ``zeros``, ``reflect``, ``replicate`` or ``circular``.
        bias: Whether members have biases, which the paper's have not. Growth puts them side by side, or adds them up.
        init: Of templates: ``kaiming`` for the variance 2 / fan-in, ``official`` for the authors' much smaller one.
        start: Of coefficients: ``orthogonal``; ``normal``, for layers that share a bank; ``ones``, which stay so.
        bank: Templates to share with other layers. ``None``: own ones.

    Raises:
        ValueError: If an argument is not allowed, a number to be split is odd, or a group would straddle the halves.

    Source: Pham, Teterwak, Nelson & Plummer 2024, arXiv:2311.04251. How groups are split is inferred.

    Examples:
        >>> import torch
        >>> layer = MixtureConv1d(4, 8, 3, padding=1)
        >>> layer(torch.zeros(1, 2, 9)).shape
        torch.Size([1, 4, 9])
    """

    _kind = nn.Conv1d
    _convolve = staticmethod(F.conv1d)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] | str = 0,
        groups: int = 1,
        num_templates: int = 2,
        split_in: bool = True,
        split_out: bool = True,
        template_sets: Sequence[int] = (0, 1, 0, 1),
        dilation: int | tuple[int] = 1,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        bias: bool = False,
        init: Literal["kaiming", "official"] = "kaiming",
        start: Literal["orthogonal", "normal", "ones"] = "orthogonal",
        bank: TemplateBank | None = None,
    ) -> None:
        super().__init__()
        geometry = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "groups": groups}
        geometry |= {"dilation": dilation, "padding_mode": padding_mode}
        split = split_in, split_out
        block = self._shape(in_channels, out_channels, geometry, split)
        self._configure(block, split, groups > 1, bias, num_templates, template_sets, init, start, bank)


class MixtureConv2d(_MixtureConv):
    r"""Apply a two-dimensional convolution mixed from templates: half as wide for each member, whole when grown.

    $$W_q = \sum_{t=1}^{K} \alpha_{q,t}\, T_{s(q),t}, \qquad W = \begin{pmatrix} W_0 & W_2 \\ W_3 & W_1 \end{pmatrix}$$

    Of a grouped convolution each member has half of the groups, and growth puts them side by side.

    Args:
        in_channels: Input channels of the grown layer.
        out_channels: Output channels of the grown layer.
        kernel_size: Height and width of the kernel.
        stride: Step of the kernel.
        padding: Rows and columns added on every side, ``same`` or ``valid``.
        groups: Groups of channels that are convolved apart, 1 or an even number.
        num_templates: K, templates of each of two sets.
        split_in: Whether each member has half of the input channels; not so in the first layer of a network.
        split_out: Whether each member has half of the output channels; not so in the last layer.
        template_sets: Which set each block is mixed from: member 0, member 1, upper right, lower left.
        dilation: Distance between the points of the kernel.
        padding_mode: What is added: ``zeros``, ``reflect``, ``replicate`` or ``circular``.
        bias: Whether members have biases, which the paper's have not. Growth puts them side by side, or adds them up.
        init: Of templates: ``kaiming`` for the variance 2 / fan-in, ``official`` for the authors' much smaller one.
        start: Of coefficients: ``orthogonal``; ``normal``, for layers that share a bank; ``ones``, which stay so.
        bank: Templates to share with other layers. ``None``: own ones.

    Raises:
        ValueError: If an argument is not allowed, a number to be split is odd, or a group would straddle the halves.

    Source: Pham, Teterwak, Nelson & Plummer 2024, arXiv:2311.04251. How groups are split is inferred.

    Examples:
        >>> import torch
        >>> layer = MixtureConv2d(3, 8, 3, padding=1, split_in=False)
        >>> layer(torch.zeros(1, 3, 9, 9)).shape
        torch.Size([1, 4, 9, 9])
        >>> layer.mode = "grown"
        >>> layer(torch.zeros(1, 3, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    _kind = nn.Conv2d
    _convolve = staticmethod(F.conv2d)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        groups: int = 1,
        num_templates: int = 2,
        split_in: bool = True,
        split_out: bool = True,
        template_sets: Sequence[int] = (0, 1, 0, 1),
        dilation: int | tuple[int, int] = 1,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        bias: bool = False,
        init: Literal["kaiming", "official"] = "kaiming",
        start: Literal["orthogonal", "normal", "ones"] = "orthogonal",
        bank: TemplateBank | None = None,
    ) -> None:
        super().__init__()
        geometry = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "groups": groups}
        geometry |= {"dilation": dilation, "padding_mode": padding_mode}
        split = split_in, split_out
        block = self._shape(in_channels, out_channels, geometry, split)
        self._configure(block, split, groups > 1, bias, num_templates, template_sets, init, start, bank)
