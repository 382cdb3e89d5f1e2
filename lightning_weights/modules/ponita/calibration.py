"""A pass that rescales convolutions on their own first inputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightning_weights.modules.ponita.separable_fiber_conv import SeparableFiberConv


@contextmanager
def calibrating(
    network: nn.Module, after: Callable[[SeparableFiberConv], None] | None = None
) -> Iterator[list[SeparableFiberConv]]:
    """Calibrate every convolution on the first input that it gets inside a ``with`` block, before it uses its weights.

    So the forward pass that comes by is already one with the new weights, layer after layer, and its gradients are
    theirs. Layers that have been calibrated before, or were loaded as such, stay as they are.

    Args:
        network: Any module with `SeparableFiberConv` layers.
        after: Called with each layer after its calibration.

    Yields:
        The layers that were not calibrated at the start.

    Examples:
        >>> from lightning_weights.modules import Ponita
        >>> network = Ponita(1, hidden_dim=8, num_layers=1, num_orientations=4)
        >>> with calibrating(network):
        ...     _ = network(torch.randn(3, 1), torch.randn(3, 3))
        >>> bool(network.blocks[0].conv.calibrated)
        True
    """

    @torch.compiler.disable
    def calibrate(layer: SeparableFiberConv, arguments: tuple[Any, ...]) -> None:
        handle = handles.pop(layer, None)
        if handle is None:  # a compiled graph goes on calling hooks that were removed
            return
        handle.remove()
        layer.calibrate(*arguments)
        if after is not None:
            after(layer)

    layers = [part for part in network.modules() if isinstance(part, SeparableFiberConv) and not bool(part.calibrated)]
    handles = {layer: layer.register_forward_pre_hook(calibrate) for layer in layers}
    try:
        yield layers
    finally:
        for handle in handles.values():
            handle.remove()
