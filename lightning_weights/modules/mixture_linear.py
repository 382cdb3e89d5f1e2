"""A linear layer that begins as two halves and grows."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_weights.modules.mixture_layer import MixtureLayer
from lightning_weights.modules.mixture_part import half_of
from lightning_weights.modules.template_bank import TemplateBank


class MixtureLinear(MixtureLayer):
    r"""Apply a linear layer whose weight is mixed from templates: half as wide for each member, whole when grown.

    $$W_q = \sum_{t=1}^{K} \alpha_{q,t}\, T_{s(q),t}, \qquad W = \begin{pmatrix} W_0 & W_2 \\ W_3 & W_1 \end{pmatrix}$$

    In mode ``member0`` or ``member1`` it is a plain layer with weight W₀ or W₁; in mode ``grown`` it has them on the
    diagonal, and blocks from the same templates beside them.

    Args:
        in_features: Inputs of the grown layer.
        out_features: Outputs of the grown layer.
        num_templates: K, templates of each of two sets.
        split_in: Whether each member has half of the inputs; not so in the first layer of a network.
        split_out: Whether each member has half of the outputs; not so in the last layer.
        template_sets: Which set each block is mixed from: member 0, member 1, upper right, lower left.
        bias: Whether members have biases, which the paper's have not. Growth puts them side by side, or adds them up.
        init: Of templates: ``kaiming`` for the variance 2 / fan-in, ``official`` for the authors' much smaller one.
        start: Of coefficients: ``orthogonal``; ``normal``, for layers that share a bank; ``ones``, which stay so.
        bank: Templates to share with other layers. ``None``: own ones.

    Raises:
        ValueError: If an argument is not allowed, or a number to be split is odd.

    Source: Pham, Teterwak, Nelson & Plummer 2024, arXiv:2311.04251.

    Examples:
        >>> import torch
        >>> layer = MixtureLinear(8, 6)
        >>> layer(torch.zeros(1, 4)).shape
        torch.Size([1, 3])
        >>> layer.mode = "grown"
        >>> layer(torch.zeros(1, 8)).shape
        torch.Size([1, 6])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_templates: int = 2,
        split_in: bool = True,
        split_out: bool = True,
        template_sets: Sequence[int] = (0, 1, 0, 1),
        bias: bool = False,
        init: Literal["kaiming", "official"] = "kaiming",
        start: Literal["orthogonal", "normal", "ones"] = "orthogonal",
        bank: TemplateBank | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        block = half_of("out_features", out_features, split_out), half_of("in_features", in_features, split_in)
        split = split_in, split_out
        self._configure(block, split, False, bias, num_templates, template_sets, init, start, bank)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of shape (..., out_features) of inputs of shape (..., in_features), halved for members."""
        self._check_channels(x.shape[-1], self.in_features)
        return F.linear(x, *self._operands(x))

    def plain(self) -> nn.Linear:
        """Return a plain layer with a copy of the weight of the current mode."""
        weight, bias = self.weight.detach(), self.bias
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        layer.weight = nn.Parameter(weight)
        layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return f"{self.in_features}, {self.out_features}, {self._describe()}"
