"""One layer of the network: a convolution, then a small network for each point and orientation."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_weights.errors import check_number
from lightning_weights.kernels.fiber_conv import SortedEdges
from lightning_weights.modules.ponita.separable_fiber_conv import SeparableFiberConv


class PonitaBlock(nn.Module):
    r"""Add to the features what a convolution and a network of two layers make of them, as in ConvNeXt.

    $$f \leftarrow f + \gamma \odot V_2 \, \mathrm{GELU}(V_1 \, \mathrm{LayerNorm}(\mathrm{conv}(f)))$$

    Where the convolution changes the number of channels, nothing is added to.

    Args:
        conv: The convolution, a `SeparableFiberConv`.
        widening_factor: Width of the network divided by the channels.
        layer_scale: Initial value of γ; ``None`` for no γ.

    Raises:
        ValueError: If a number is out of range.

    Source: Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> sum(p.numel() for p in PonitaBlock(SeparableFiberConv(8, 4)).parameters())
        640
    """

    def __init__(self, conv: SeparableFiberConv, widening_factor: int = 4, layer_scale: float | None = None) -> None:
        super().__init__()
        check_number("widening_factor", widening_factor, low=1, whole=True)
        if layer_scale is not None:
            check_number("layer_scale", layer_scale, low=0.0, low_allowed=False)
        channels = conv.out_channels
        self.conv = conv
        self.norm = nn.LayerNorm(channels)
        self.linear_1 = nn.Linear(channels, widening_factor * channels)
        self.linear_2 = nn.Linear(widening_factor * channels, channels)
        self.layer_scale = None if layer_scale is None else nn.Parameter(torch.full((channels,), float(layer_scale)))

    def forward(self, features: Tensor, basis: Tensor, fiber_basis: Tensor | None, edges: SortedEdges) -> Tensor:
        """Compute the layer; arguments as those of the convolution."""
        change = self.norm(self.conv(features, basis, fiber_basis, edges))
        change = self.linear_2(F.gelu(self.linear_1(change)))
        if self.layer_scale is not None:
            change = change * self.layer_scale
        return features + change if self.conv.in_channels == self.conv.out_channels else change
