"""Parameters that keep their precision when the rest of a network is converted to a narrow one."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

NARROW = (torch.float16, torch.bfloat16)


def keeping_width(
    convert: Callable[[Tensor], Tensor], parameters: Iterable[Tensor | None], narrowed: Callable[[], None] | None = None
) -> Callable[[Tensor], Tensor]:
    """Wrap what ``nn.Module._apply`` does to tensors, so that parameters follow to another device but stay wide.

    Args:
        convert: What is applied to every tensor.
        parameters: Those whose precision is kept; that of their gradients is too.
        narrowed: Called when a parameter would have lost precision.

    Returns:
        The conversion.
    """
    kept = {id(tensor) for param in parameters if param is not None for tensor in (param, param.grad)}

    def wide(tensor: Tensor) -> Tensor:
        converted = convert(tensor)
        if id(tensor) not in kept or converted.dtype not in NARROW or tensor.dtype in NARROW:
            return converted
        if narrowed is not None:
            narrowed()
        return tensor.to(converted.device)

    return wide
