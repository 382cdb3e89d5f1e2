"""Which layers and parameters TSCNC's gates and penalties are about."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization
from torch.optim import Optimizer

from lightning_weights.callbacks._injection import check_weights, named_layers, raw_weights, weight_layers
from lightning_weights.errors import LightningWeightsWarning, name_list
from lightning_weights.functional.tscnc import condition_penalty
from lightning_weights.modules.hard_concrete_gate import HardConcreteGate
from lightning_weights.modules.parametrized import find_parametrizations
from lightning_weights.modules.score_mask import ScoreMask

NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm),
)


def names_or_choice(argument: str, value: Any, choices: Sequence[str]) -> str | list[str]:
    """Return one of a few words, or a list of names.

    Args:
        argument: Which argument it is, for the message.
        value: What was given; any sequence of strings becomes a list.
        choices: The words.

    Raises:
        ValueError: If it is neither.
    """
    if value in choices:
        return value
    or_else = f" or {' or '.join(map(repr, choices))}"
    names = name_list(argument, value, or_else)
    if not names:
        raise ValueError(f"{argument} is []; allowed is a list of at least one name{or_else}")
    return names


def conditioned_layers(module: nn.Module, chosen: str | list[str]) -> dict[str, nn.Module]:
    """Return the layers whose condition counts.

    Args:
        module: Network to search.
        chosen: ``classifier``, ``all``, or names.

    Raises:
        ValueError: If there is no layer, or a name fits none.
    """
    if not isinstance(chosen, str):
        return named_layers(module, chosen, "cnc_layers")
    layers = weight_layers(module)
    if not layers:
        raise ValueError(
            f"cnc_layers is {chosen!r}, but the network has no Linear or Conv layer, only {_kinds(module)}; use "
            f"cnc_weight=0 to leave the constraint out"
        )
    return layers if chosen == "all" else dict([list(layers.items())[-1]])


def layers_to_gate(module: nn.Module, chosen: str | list[str] | None) -> dict[str, nn.Module]:
    """Return the layers that get gates.

    Args:
        module: Network to search.
        chosen: ``auto`` for all but the first and the last, names, or ``None`` for none.

    Raises:
        ValueError: If ``auto`` finds none, or a name fits none.
    """
    if chosen is None:
        return {}
    if not isinstance(chosen, str):
        return named_layers(module, chosen, "gated_layers")
    layers = weight_layers(module)
    if len(layers) < 3:
        raise ValueError(
            f"gated_layers is 'auto', which gates the Linear and Conv layers between the first and the last, but there "
            f"are only {', '.join(layers) or 'none'} among {_kinds(module)}; name layers, or use None for no gates"
        )
    return dict(list(layers.items())[1:-1])


def put_gates(module: nn.Module, layers: Mapping[str, nn.Module], droprate_init: float, temperature: float) -> None:
    """Gate the filters of layers; those that have gates keep them.

    Args:
        module: The network.
        layers: Layers of it, by name.
        droprate_init: As of HardConcreteGate.
        temperature: As of HardConcreteGate.

    Raises:
        ValueError: If a weight is shared, has no values, or has another parametrization.
        ShardedParameterError: If a weight is sharded.
    """
    check_weights(module, layers, "gate")
    todo = {name: layer for name, layer in layers.items() if HardConcreteGate not in map(type, _steps(layer))}
    for name, layer in todo.items():
        if any(not isinstance(step, ScoreMask) for step in _steps(layer)):
            raise ValueError(
                f"gated_layers has {name}, whose weight has another parametrization; remove it, or leave the layer out"
            )
    for layer in todo.values():
        weight = raw_weights(layer)[0]
        gate = HardConcreteGate(len(weight), droprate_init, temperature)
        register_parametrization(layer, "weight", gate.to(weight.device).train(layer.training))


def mean_condition(layers: Mapping[str, nn.Module], mode: str, like: Tensor) -> Tensor:
    """Return the mean of the condition-number penalty over layers.

    Args:
        layers: Layers by name.
        mode: As of ``functional.tscnc.condition_penalty``.
        like: A tensor of the result's dtype and device.
    """
    return torch.stack([condition_penalty(raw_weights(layer)[0], mode).to(like) for layer in layers.values()]).mean()


def warn_if_decayed(optimizers: Iterable[Optimizer]) -> None:
    """Warn of optimizers with a weight decay of their own.

    Args:
        optimizers: All optimizers.
    """
    if any(group.get("weight_decay") for optimizer in optimizers for group in optimizer.param_groups):
        warnings.warn(
            "the optimizer has a weight_decay, but TSCNC's penalty holds the decay of all parameters: they decay "
            "twice. Give the optimizer weight_decay=0, or TSCNC weight_decay=0.",
            LightningWeightsWarning,
            stacklevel=2,
        )


def warn_if_wide(layers: Mapping[str, nn.Module]) -> None:
    """Warn of weights that have as many rows as columns or more: their rows cannot be independent.

    Args:
        layers: Layers by name.
    """
    for name, layer in layers.items():
        rows, columns = raw_weights(layer)[0].flatten(1).shape
        if rows >= columns:
            warnings.warn(
                f"{name} has {rows} outputs and {columns} inputs: the condition-number constraint takes the smaller "
                f"side and conditions its columns, not its rows",
                LightningWeightsWarning,
                stacklevel=2,
            )


class DecayedTensors(NamedTuple):
    """The arguments of the penalty on a network's parameters.

    Args:
        gated: Gated weights with the probabilities of their filters to be kept.
        plain: Other weights and biases.
        norms: Parameters of normalisation layers.
    """

    gated: list[tuple[Tensor, Tensor]]
    plain: list[Tensor]
    norms: list[Tensor]


def decayed_tensors(module: nn.Module) -> DecayedTensors:
    """Sort the trainable parameters of a network; log α and scores are left out."""
    gates = list(find_parametrizations(module, HardConcreteGate))
    weights = [raw_weights(found.layer)[0] for found in gates]
    gated = [
        (weight, found.step.keep_probability())
        for weight, found in zip(weights, gates, strict=True)
        if weight.requires_grad or found.step.log_alpha.requires_grad
    ]
    masks = find_parametrizations(module, ScoreMask)
    norms = [param for part in module.modules() if isinstance(part, NORMS) for param in part.parameters(recurse=False)]
    aside = [*weights, *(found.step.log_alpha for found in gates)]
    aside += [*(found.step.scores for found in masks), *norms]
    known = {id(tensor) for tensor in aside}
    plain = [param for param in module.parameters() if id(param) not in known and param.requires_grad]
    return DecayedTensors(gated, plain, [param for param in norms if param.requires_grad])


def _steps(layer: nn.Module) -> list[nn.Module]:
    return list(layer.parametrizations["weight"]) if is_parametrized(layer, "weight") else []


def _kinds(module: nn.Module) -> str:
    leaves = {type(part).__name__ for part in module.modules() if not list(part.children())}
    return ", ".join(sorted(leaves)) or "no parts"
