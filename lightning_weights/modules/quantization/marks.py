"""How layers that were quantized are known, so that it is not done twice."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

ATTRIBUTE = "quantized_by"
ENTRIES, ROUNDING = 64, 2.0**-8  # how many tell weights apart, and what a conversion to half precision may change


class Mark(NamedTuple):
    """What is known of a layer that was quantized.

    Attributes:
        method: Name of the method.
        entries: Some entries of the quantized weight; none of packed codes, which are quantized whatever they are.
    """

    method: str
    entries: Tensor

    def fits(self, weight: Tensor) -> bool:
        """Tell whether a weight is still the quantized one, and not one that was loaded or trained since.

        Args:
            weight: Weight of the layer.
        """
        return torch.allclose(_some(weight), self.entries, rtol=ROUNDING, atol=0.0)


def mark(layer: nn.Module, method: str) -> None:
    """Note which method gave a layer the weight that it has.

    Args:
        layer: What was quantized.
        method: Name of the method.
    """
    weight = layer._parameters.get("weight", torch.empty(0))
    setattr(layer, ATTRIBUTE, Mark(method, _some(weight)))


def mark_of(layer: nn.Module) -> Mark | None:
    """Return what is known of a layer, or None if it was never quantized.

    Args:
        layer: Any layer.
    """
    return vars(layer).get(ATTRIBUTE)


def _some(weight: Tensor) -> Tensor:
    entries = weight.detach().reshape(-1)
    return entries[:: max(1, len(entries) // ENTRIES)][:ENTRIES].to("cpu", torch.float32, copy=True)
