"""Find the linear layers of a backbone, layer by layer."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from lightning_weights.modules.generated_linear import GeneratedLinear


class LayerTargets(NamedTuple):
    """What a generator has to know about a backbone.

    Attributes:
        targets: Inputs and outputs of every target by its name within a layer.
        num_layers: Number of layers.
        prefix: What comes before the number of a layer.

    Examples:
        >>> LayerTargets({"fc": (8, 8)}, 3, "blocks").prefix
        'blocks'
    """

    targets: Mapping[str, tuple[int, int]]
    num_layers: int
    prefix: str


def find_targets(backbone: nn.Module, target_modules: str | Sequence[str]) -> LayerTargets:
    """Find the linear layers that patterns name, and how they repeat from layer to layer.

    A layer is what comes after the first number in a name: ``model.layers.3.attn.qkv`` is ``attn.qkv`` of layer 3.
    Where names have no such number, all targets belong to a single layer.

    Args:
        backbone: Network.
        target_modules: Names or last parts of names, with ``*`` and ``?``, or, as a single string, a regular
            expression that fits whole names, as peft has it.

    Raises:
        ValueError: If a pattern names no linear layer, or layers have other targets or shapes than the first.

    Examples:
        >>> backbone = nn.ModuleDict({"blocks": nn.ModuleList([nn.Sequential(nn.Linear(8, 4)) for _ in range(3)])})
        >>> find_targets(backbone, ["0"])
        LayerTargets(targets={'0': (8, 4)}, num_layers=3, prefix='blocks')
    """
    linear = {
        name: (part.in_features, part.out_features)
        for name, part in backbone.named_modules()
        if isinstance(part, (nn.Linear, GeneratedLinear)) and not name.endswith("base_layer")
    }
    patterns = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    chosen: dict[str, tuple[int, int]] = {}
    for pattern in patterns:
        whole = isinstance(target_modules, str)
        named = [name for name in linear if _fits(name, pattern, whole)]
        if not named:
            raise ValueError(
                f"target_modules has {pattern!r}, which names no linear layer; there are {', '.join(linear) or 'none'}"
            )
        chosen |= {name: linear[name] for name in linear if name in named}
    return _by_layer({name: linear[name] for name in linear if name in chosen})


def _fits(name: str, pattern: str, expression: bool) -> bool:
    if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}"):
        return True
    if not expression:
        return False
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False


def _by_layer(chosen: dict[str, tuple[int, int]]) -> LayerTargets:
    found = {name: re.match(r"(?:(.*?)\.)?(\d+)\.(.+)", name) for name in chosen}
    if not all(found.values()):
        return LayerTargets(chosen, 1, "")
    layers: dict[tuple[str, int], dict[str, tuple[int, int]]] = {}
    for name, match in found.items():
        assert match is not None
        layers.setdefault((match[1] or "", int(match[2])), {})[match[3]] = chosen[name]
    first = next(iter(layers.values()))
    prefixes, numbers = {prefix for prefix, _ in layers}, sorted(number for _, number in layers)
    odd = [f"{prefix}.{number} {own}" for (prefix, number), own in layers.items() if own != first]
    if odd:
        raise ValueError(
            f"all layers need the same targets, but the first has {first}, and there are {'; '.join(odd)}; choose "
            f"fewer targets, or give them as one layer with whole names"
        )
    if len(prefixes) > 1 or numbers != list(range(len(numbers))) or "" in prefixes:
        return LayerTargets(chosen, 1, "")
    return LayerTargets(first, len(numbers), prefixes.pop())
