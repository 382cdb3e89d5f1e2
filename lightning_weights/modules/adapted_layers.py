"""Put layers that take generated matrices into a network, and take them out again."""

from collections.abc import Iterable

import torch
from torch import nn

from lightning_weights.modules.generated_linear import GeneratedLinear


def adapt_layers(model: nn.Module, names: Iterable[str]) -> None:
    """Put a `GeneratedLinear` in the place of linear layers; those that are there stay.

    Args:
        model: Network.
        names: Names of the layers, as in ``named_modules()``.

    Raises:
        ValueError: If a name is no linear layer, or one that can't be adapted; nothing has changed then.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 3))
        >>> adapt_layers(model, ["0"])
        >>> model[0]
        GeneratedLinear(
          in_features=4, out_features=3
          (base_layer): Linear(in_features=4, out_features=3, bias=True)
        )
    """
    parts = dict(model.named_modules(remove_duplicate=False))
    replacements = {}
    for name in names:
        if name not in parts:
            linear = [name for name, part in parts.items() if isinstance(part, nn.Linear)]
            raise ValueError(f"{name!r} is no module of the network; linear layers are {', '.join(linear) or 'none'}")
        if isinstance(parts[name], GeneratedLinear):
            continue
        _check_place(model, parts, name)
        try:
            replacements[name] = GeneratedLinear(parts[name])
        except ValueError as error:
            raise ValueError(f"cannot adapt {name}: {error}") from error
    for name, layer in replacements.items():
        model.set_submodule(name, layer)


def _check_place(model: nn.Module, parts: dict[str, nn.Module], name: str) -> None:
    layer = parts[name]
    users = [other for other, part in parts.items() if getattr(part, "weight", None) is getattr(layer, "weight", part)]
    if len(users) > 1:
        raise ValueError(f"cannot adapt {name}: its weight is shared by {' and '.join(users)}; leave it out")
    owner = parts[name.rpartition(".")[0]] if name else model
    if isinstance(owner, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
        raise ValueError(
            f"cannot adapt {name}: its TransformerEncoderLayer reads the weight in evaluation and never calls it; call "
            f"torch.backends.mha.set_fastpath_enabled(False) before, or leave the layer out"
        )


def plain_layers(model: nn.Module) -> None:
    """Put every adapted layer's own linear layer back into its place.

    Args:
        model: Network.

    Examples:
        >>> model = nn.Sequential(GeneratedLinear(nn.Linear(4, 3)))
        >>> plain_layers(model)
        >>> model[0]
        Linear(in_features=4, out_features=3, bias=True)
    """
    for name, part in list(model.named_modules()):
        if isinstance(part, GeneratedLinear):
            model.set_submodule(name, part.base_layer)
