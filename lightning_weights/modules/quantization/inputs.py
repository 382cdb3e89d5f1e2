"""What goes into a layer, as the columns that its weight multiplies."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Enough(BaseException):
    """Ends a forward pass whose rest nobody needs; no ``except Exception`` of a network catches it."""


class StreamMismatchError(RuntimeError):
    """The full-precision and the quantized stream gave a layer inputs that don't belong together."""


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the input of a layer from what it was called with."""
    return args[0] if args else kwargs["input"]


def listen(layers: Sequence[nn.Module], run: Callable[[], Any], enough: int | None = None) -> list[Tensor]:
    """Return what goes into some layers while a network runs.

    Args:
        layers: Layers to listen to.
        run: Runs the network.
        enough: Number of inputs after which the network needn't run on. ``None``: it runs to its end.
    """
    found: list[Tensor] = []

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = input_of(args, kwargs).detach()
        # what runs on may change its tensors
        found.append(x if len(found) + 1 == enough else x.clone())
        if len(found) == enough:
            raise Enough

    handles: list[RemovableHandle] = []
    try:
        handles += [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
        run()
    except Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def as_columns(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Return a layer's inputs of shape (samples, positions, columns), one tensor for each group of a convolution.

    Inputs of a linear layer stay as they are. Those of a convolution are unfolded by the layer's own convolution, so
    that stride, padding of any mode and dilation are as in the layer.

    Args:
        layer: Linear or convolution layer.
        x: What goes into it.
    """
    if isinstance(layer, nn.Linear):
        return [x.unsqueeze(0) if x.ndim == 1 else x]
    kernel = layer.weight.shape[1:]
    columns = kernel.numel()
    unit = torch.eye(columns, dtype=x.dtype, device=x.device).reshape(columns, *kernel)
    x = x.unsqueeze(0) if x.ndim == len(kernel) else x
    unfolded = layer._conv_forward(x, unit.repeat(layer.groups, *[1] * len(kernel)), None)
    return list(unfolded.flatten(2).transpose(1, 2).split(columns, dim=2))


def fitting_mask(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """Return which rows of a layer's inputs count, of the inputs' shape without the last dimension, or None for all.

    Args:
        x: What goes into the layer, as columns.
        mask: Shape (N, T), true where there is something. Inputs of other shapes, such as the first tokens only, don't
            tell which of their rows are padding.
    """
    if mask is not None and x.ndim == 3 and x.shape[:2] == mask.shape:
        return mask.to(x.device)
    if mask is not None and x.ndim == 2 and len(x) == mask.numel():
        return mask.reshape(-1).to(x.device)
    return None


def check_finite(name: str, x: Tensor, mask: Tensor | None, batch: int) -> None:
    """Check the inputs of a layer.

    Args:
        name: Name of the layer.
        x: What goes into it.
        mask: Which rows count.
        batch: Which calibration batch this is.

    Raises:
        ValueError: If there is NaN or infinity in it.
    """
    if not torch.isfinite(x if mask is None else x[mask]).all():
        raise ValueError(
            f"the inputs of {name} hold NaN or infinity in calibration batch {batch}, so that nothing can be fitted to "
            f"them; look for it in the data, or for an overflow in half precision"
        )


def check_streams(name: str, quantized: Sequence[Tensor], full: Sequence[Tensor]) -> None:
    """Check that the inputs of both streams belong together.

    Args:
        name: Name of the layer.
        quantized: Its inputs in the quantized stream, one per call.
        full: Those in the full-precision stream.

    Raises:
        StreamMismatchError: If there are other numbers of calls or other shapes.
    """
    shapes = [[tuple(x.shape) for x in stream] for stream in (quantized, full)]
    if shapes[0] != shapes[1]:
        raise StreamMismatchError(
            f"{name} got inputs of the shapes {shapes[1]} from the full-precision network and {shapes[0]} from the "
            f"quantized one: they don't belong together. The network chooses what goes where from the values "
            f"(experts), or steps differ (random or shuffled data). Use a method with one stream: gptq, rescomp_gptq, "
            f"or FOEM with alpha=0"
        )
