"""Linear layers that others take the place of."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lightning_weights.callbacks._injection import check_weights
from lightning_weights.callbacks._targets import name_matches
from lightning_weights.errors import LightningWeightsWarning

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def saved_modules(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the names of the modules that are trained whole.

    Args:
        module: Where to look.
        patterns: Names or last parts of names, with ``*`` and ``?``.

    Raises:
        ValueError: If a pattern names no module with parameters.
    """
    names = [name for name, part in module.named_modules() if name and next(part.parameters(), None) is not None]
    for pattern in patterns:
        if not any(name_matches(name, pattern) for name in names):
            raise ValueError(
                f"modules_to_save has {pattern!r}, which names no module with parameters; there are {', '.join(names)}"
            )
    return [name for name in names if any(name_matches(name, pattern) for pattern in patterns)]


def check_replaceable(module: nn.Module, layers: Mapping[str, nn.Module], argument: str = "target_modules") -> None:
    """Check that layers do nothing but what ``nn.Linear`` or ``nn.Conv2d`` does, with whole weights of their own.

    Args:
        module: What the layers are part of.
        layers: Layers by name.
        argument: Which argument names them, for the message.

    Raises:
        ValueError: If a layer does something else or is not always called, or its weight is shared, computed by
            something else or without values.
        ShardedParameterError: If a weight is sharded.
    """
    for name, layer in layers.items():
        if isinstance(layer, NonDynamicallyQuantizableLinear):
            raise ValueError(
                f"{name} belongs to a MultiheadAttention, which reads its weight and never calls it, so that another "
                f"layer in its place would do nothing; leave it out of {argument}"
            )
        plain = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
        if type(layer).forward is not plain.forward:
            raise ValueError(
                f"{name} is a {type(layer).__name__}, whose forward is not that of nn.{plain.__name__}; leave it out "
                f"of {argument}"
            )
        if not {"weight", "bias"} <= layer._parameters.keys():
            raise ValueError(
                f"{name} has a weight or bias that something else computes (a parametrization, weight_norm, pruning); "
                f"make it permanent first, or leave the layer out of {argument}"
            )
        owner = module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
            raise ValueError(
                f"{name} belongs to a TransformerEncoderLayer, which reads its weight in evaluation instead of calling "
                f"it, so that what is trained would not count; call torch.backends.mha.set_fastpath_enabled(False) "
                f"before, or leave it out of {argument}"
            )
    check_weights(module, layers, "replace")


def replace_layers(module: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put new layers wherever the old ones stand; one that stands in several places goes into all of them.

    Args:
        module: Network.
        replacements: New layers by old ones.

    Warns:
        LightningWeightsWarning: If an old layer has hooks, which the new one does not have.
    """
    places = {name: part for name, part in module.named_modules(remove_duplicate=False) if part in replacements}
    if hooked := [name for name, part in places.items() if any(getattr(part, kind) for kind in HOOKS)]:
        warnings.warn(
            f"{', '.join(hooked)} had hooks, which are gone with the layers that were replaced; register them on the "
            f"new ones",
            LightningWeightsWarning,
            stacklevel=4,
        )
    for name, part in places.items():
        module.set_submodule(name, replacements[part])
