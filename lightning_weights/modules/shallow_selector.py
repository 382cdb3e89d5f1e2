"""Which layers of a network are shallow."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_choice, check_number, name_list
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.modules._signature_tensors import body, is_layer_weight, is_running, network_tensors

ORDERS = ("definition", "forward")


class ShallowSelector:
    """Selects the tensors of a network's first units.

    A unit is a layer with its bias and the normalisation after it, or a whole block: what has a number in its name, as
    ``features.3`` or ``layer1.0``, is one unit with everything in it. So a VGG's units are its convolutions, and a
    ResNet's are its stem and its blocks. The classifier and running statistics are never selected.

    The criteria hold together: of the units that match a pattern, the first ``n_modules`` within the budget.

    Args:
        n_modules: How many units at most. ``None``: all.
        patterns: Regular expressions for names of units, one of which has to match the whole name. ``None``: any name.
        max_fraction: Share of the network's weights that the selected ones have at most, in (0, 1]: units are taken in
            order as long as they fit. ``None``: any share.
        order: What comes first: ``definition`` counts in the order in which layers are in the network, ``forward`` in
            the order in which they are run, for which ``select`` needs a module and an input.

    Raises:
        ValueError: If an argument is out of range, or a pattern is no regular expression.

    Source: Cai, Zhang, Wang 2023, arXiv:2302.12480.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 2))
        >>> ShallowSelector(n_modules=1).select(network)
        ['0.weight', '0.bias']
        >>> list(ShallowSelector().units(network))
        ['0', '2']
    """

    def __init__(
        self,
        n_modules: int | None = 7,
        patterns: list[str] | None = None,
        max_fraction: float | None = None,
        order: Literal["definition", "forward"] = "definition",
    ) -> None:
        if n_modules is not None:
            check_number("n_modules", n_modules, low=1, whole=True)
        if max_fraction is not None:
            check_number("max_fraction", max_fraction, low=0.0, low_allowed=False, high=1.0 + 1e-12)
        check_choice("order", order, ORDERS)
        self.n_modules = n_modules
        self.patterns = None if patterns is None else name_list("patterns", patterns, " or None")
        for pattern in self.patterns or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"patterns has {pattern!r}, which is no regular expression: {error}") from error
        self.max_fraction = max_fraction
        self.order = order

    def __repr__(self) -> str:
        return f"ShallowSelector({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def units(self, network: nn.Module | Mapping[str, Tensor], example_input: Any = None) -> dict[str, list[str]]:
        """Return the names of the tensors of every unit, in order, without the classifier.

        Args:
            network: A module, its state dict, or a checkpoint.
            example_input: A batch that the module takes, for the order ``forward``.

        Raises:
            ValueError: If the order can't be found without a module and an input.
        """
        tensors = network_tensors(network)
        units = _units(body(tensors))
        if self.order == "definition":
            return units
        if not isinstance(network, nn.Module) or example_input is None:
            raise ValueError("order is 'forward', which needs a module and an example_input; or use 'definition'")
        places = _executed(network, example_input)
        first = {name: min(_place(places, key) for key in names) for name, names in units.items()}
        return {name: units[name] for name in sorted(units, key=lambda name: first[name])}

    def select(self, network: nn.Module | Mapping[str, Tensor], example_input: Any = None) -> list[str]:
        """Return the names of the selected tensors, in order.

        Args:
            network: A module, its state dict, or a checkpoint.
            example_input: A batch that the module takes, for the order ``forward``.

        Raises:
            ValueError: If nothing is selected, or the order can't be found.
        """
        units = self.units(network, example_input)
        tensors = network_tensors(network)
        chosen = [name for name in units if self.patterns is None or self._matches(name)][: self.n_modules]
        left = float("inf") if self.max_fraction is None else self.max_fraction * _weights(tensors, list(tensors))
        selected: list[str] = []
        for name in chosen:
            left -= _weights(tensors, units[name])
            if left < 0:
                break
            selected += units[name]
        if not selected:
            raise ValueError(
                f"{self!r} selects nothing; the units of this network, without the classifier, are "
                f"{', '.join(f'{name} ({_weights(tensors, keys)} weights)' for name, keys in units.items()) or 'none'}"
            )
        return selected

    def _matches(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.patterns or ())


def _units(tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            groups.setdefault(_unit_name(name), []).append(name)
    units: dict[str, list[str]] = {}
    for unit, names in groups.items():
        if any(is_layer_weight(name, tensors[name]) for name in names):
            units[unit] = names
        elif units and all(tensors[name].ndim == 1 for name in names):  # a normalisation, of the layer before it
            units[next(reversed(units))] += names
    return units


def _unit_name(name: str) -> str:
    """The name up to the first number in it and the numbers right after that, or the layer's without any."""
    parts = name.split(".")[:-1]
    end = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts))
    while end < len(parts) and parts[end].isdigit():
        end += 1
    return ".".join(parts[:end])


def _weights(tensors: Mapping[str, Tensor], names: Sequence[str]) -> int:
    return sum(tensors[name].numel() for name in names if not is_running(name))


def _executed(network: nn.Module, example_input: Any) -> list[str]:
    """Return the names of the modules in the order in which they are first run."""
    order: list[str] = []
    names = {module: plain_name(name) for name, module in network.named_modules()}
    hooks = [module.register_forward_pre_hook(lambda run, _: order.append(names[run])) for module in names]
    try:
        with torch.no_grad(), evaluation_mode(network):
            network(example_input)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(order))


def _place(places: Sequence[str], key: str) -> float:
    """Return when the layer of a tensor is run; names of modules may have more in front than those of tensors."""
    layer = key.rpartition(".")[0]
    found = [place for place, name in enumerate(places) if name == layer or name.endswith(f".{layer}")]
    return min(found, default=float("inf"))
