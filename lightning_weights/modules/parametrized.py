"""Finding parametrizations in a network."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


class Parametrized(NamedTuple):
    """Where a parametrization sits.

    Args:
        name: Name of the layer in the network.
        layer: The layer.
        tensor: Name of its parametrized tensor.
        step: The parametrization.
    """

    name: str
    layer: nn.Module
    tensor: str
    step: nn.Module


def find_parametrizations(
    module: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]
) -> Iterator[Parametrized]:
    """Find the parametrizations of some class on the tensors of a network's layers.

    Args:
        module: Network to search.
        kind: Class of the parametrization, or several.

    Yields:
        One entry per parametrization, in the order of the layers.

    Examples:
        >>> from torch.nn.utils import parametrize
        >>> from lightning_weights.modules import HardConcreteGate
        >>> network = nn.Sequential(nn.Linear(3, 2))
        >>> _ = parametrize.register_parametrization(network[0], "weight", HardConcreteGate(2))
        >>> [(found.name, found.tensor) for found in find_parametrizations(network, HardConcreteGate)]
        [('0', 'weight')]
    """
    for name, layer in module.named_modules():
        if is_parametrized(layer):
            for tensor, steps in layer.parametrizations.items():
                yield from (Parametrized(name, layer, tensor, step) for step in steps if isinstance(step, kind))


def give_own_class(layer: nn.Module) -> None:
    """Give a parametrized layer a class of its own, before its parametrizations are removed.

    PyTorch lets it share one with its deep copies, which would lose the parametrized tensor.

    Args:
        layer: A layer with a parametrization.

    Examples:
        >>> import copy
        >>> from torch.nn.utils.parametrizations import weight_norm
        >>> layer = weight_norm(nn.Linear(2, 2))
        >>> copied = copy.deepcopy(layer)
        >>> give_own_class(layer)
        >>> type(layer) is type(copied)
        False
    """
    shared = type(layer)
    members = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    layer.__class__ = type(shared.__name__, shared.__bases__, members)
