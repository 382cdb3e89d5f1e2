"""A quantizer of activations between two learned shifts."""

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.modules.lsq_quantizer import LSQQuantizer


class InputQuantizer(nn.Module):
    r"""Shift the inputs of a layer, quantize them with a learned step, and shift them again.

    $$\hat x = \operatorname{LSQ}(x + \beta_1) + \beta_2$$

    Args:
        features: Length of the last dimension, to which both shifts belong.
        bits: b from 2 to 8.
        signed: Whether there are negative codes; inputs behind a GELU do without.
        granularity: As of [`LSQQuantizer`][lightning_weights.modules.LSQQuantizer].

    Raises:
        ValueError: If an argument is not allowed.

    Source: Liu, Liu & Cheng 2023, arXiv:2302.02210.

    Examples:
        >>> import torch
        >>> InputQuantizer(4, bits=2)(torch.randn(2, 3, 4)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(
        self,
        features: int,
        bits: int = 2,
        signed: bool = True,
        granularity: Literal["tensor", "token", "channel"] = "token",
    ) -> None:
        check_number("features", features, low=1, whole=True)
        super().__init__()
        self.before = nn.Parameter(torch.zeros(features))
        self.quantizer = LSQQuantizer(bits, signed, granularity)
        self.after = nn.Parameter(torch.zeros(features))

    def reset_parameters(self) -> None:
        """Set both shifts to zero; steps are left to the next values seen."""
        nn.init.zeros_(self.before)
        nn.init.zeros_(self.after)
        self.quantizer.step.data = self.quantizer.step.new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized values, of the shape and dtype of ``x``."""
        return (self.quantizer(x + self.before) + self.after).to(x.dtype)
