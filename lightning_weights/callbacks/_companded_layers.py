"""Which layers WeightCompander is about, and what their optimizers have to do."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer

from lightning_weights.callbacks._injection import check_weights, named_layers, weight_layers
from lightning_weights.callbacks._parameter_groups import move_to_own_group
from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError
from lightning_weights.modules.compander import Compander
from lightning_weights.modules.parametrized import Parametrized

EFFECTIVE_DECAY = "effective_weight_decay"  # in a parameter group: decay of weights instead of latents


def latent_of(part: Parametrized) -> Any:
    """Return the latent weight of a companded layer."""
    return part.layer.parametrizations[part.tensor].original


def check_same_function(name: str, compander: Compander, asked: Mapping[str, Any]) -> None:
    """Check that a weight that is companded already is so as it is asked for.

    Args:
        name: Of its layer.
        compander: Of the weight.
        asked: Arguments of the callback. What was companded by hand has its own κ, β and share.

    Raises:
        ValueError: If it is not.
    """
    here = {"function": compander.function, "learnable": compander.learnable, **compander.settings}
    for argument, value in here.items():
        if value != asked[argument]:
            raise ValueError(
                f"{name} is companded already, with {argument}={value!r}, and {argument} is {asked[argument]!r}; call "
                f"merge_companders(module) first, or give the same arguments"
            )


def layers_to_compand(
    module: nn.Module, chosen: list[str] | None, excluded: list[str] | None
) -> tuple[dict[str, nn.Module], list[str]]:
    """Return the layers that are companded by name, and in words what else has parameters.

    Args:
        module: Network to search.
        chosen: Patterns of names; ``None`` for all Linear and Conv layers.
        excluded: Patterns of names.

    Raises:
        ValueError: If a pattern names no layer.
        MisconfigurationException: If none is left.
    """
    layers = weight_layers(module) if chosen is None else named_layers(module, chosen, "modules")
    left_out = named_layers(module, excluded, "exclude") if excluded else {}
    layers = {name: layer for name, layer in layers.items() if name not in left_out}
    within = tuple(f"{name}." for name in layers)
    others = [
        f"{name or 'the module itself'} ({type(part).__name__})"
        for name, part in module.named_modules()
        if part._parameters and name not in layers and not name.startswith(within)
    ]
    if not layers:
        raise MisconfigurationException(
            f"WeightCompander has no layer: modules={chosen} without exclude={excluded} leaves no Linear or Conv "
            f"weight; there are {', '.join(others) or 'no parameters'}"
        )
    return layers, others


def check_compandable(module: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Check that weights are plain, whole, with values and of one layer each; warn if they have 16 bits.

    Args:
        module: The network.
        layers: Layers of it, by name.

    Raises:
        ValueError: If a weight is computed by something else, quantized, shared or empty.
        ShardedParameterError: If a weight is sharded.
    """
    for name, layer in layers.items():
        if is_parametrized(layer, "weight"):
            steps = [type(step).__name__ for step in layer.parametrizations["weight"]]
            reason = f"has another parametrization ({', '.join(steps)})"
        elif "weight" not in layer._parameters:
            reason = "is computed by something else, such as the old weight_norm"
        elif not layer.weight.is_floating_point():
            reason = f"is quantized ({layer.weight.dtype})"
        elif any(fnmatchcase(part, "lora_*") or part == "base_layer" for part in name.split(".")):
            reason = "is part of a LoRA layer"
        else:
            continue
        raise ValueError(f"cannot compand {name}: its weight {reason}; remove that first, or exclude the layer")
    try:
        check_weights(module, layers, "compand")
    except ShardedParameterError as error:
        raise ShardedParameterError(f"{error}; or call attach in configure_model, before fully_shard") from error
    if half := [name for name, layer in layers.items() if layer.weight.dtype.itemsize < 4]:
        warnings.warn(
            f"weights of {', '.join(half)} have 16 bits, in which the function's inverse loses digits: first outputs "
            f"differ from the plain network's; use precision='bf16-mixed'",
            LightningWeightsWarning,
            stacklevel=3,
        )


def check_fresh(optimizers: Iterable[Optimizer], module: nn.Module, found: Iterable[Parametrized]) -> None:
    """Check that optimizers do not hold parameters of before companding, in place of the latents.

    Args:
        optimizers: The optimizers.
        module: The companded network.
        found: Its companded weights.

    Raises:
        ValueError: If they do.
    """
    known = {id(param) for optimizer in optimizers for group in optimizer.param_groups for param in group["params"]}
    missing = [part.name for part in found if latent_of(part).requires_grad and id(latent_of(part)) not in known]
    if missing and known - {id(param) for param in module.parameters()}:
        raise ValueError(
            f"the optimizer holds stale parameters: not the latent weights of {', '.join(missing)}, but some that the "
            f"module does not have. Make it in configure_optimizers, from self.parameters()"
        )


def set_scales_apart(
    optimizer: Optimizer, scales: Sequence[Tensor], schedulers: Sequence[Any], lr_scale: float
) -> None:
    """Give learned scales and widths groups without decay and with a learning rate of their own, if need be.

    Args:
        optimizer: An optimizer without state.
        scales: The parameters.
        schedulers: All learning-rate schedulers.
        lr_scale: Factor of their learning rate.
    """
    decayed = [group for group in optimizer.param_groups if group.get("weight_decay") or lr_scale != 1.0]
    inside = {id(param) for group in decayed for param in group["params"]}
    changes = {"weight_decay": 0.0} if "weight_decay" in optimizer.defaults else {}
    moving = [rho for rho in scales if id(rho) in inside]
    move_to_own_group(optimizer, moving, schedulers, lr_scale, **changes)


def set_latents_apart(optimizer: Optimizer, latents: Sequence[Tensor], schedulers: Sequence[Any]) -> None:
    """Give latents that decay groups without decay, which remember it for `add_effective_decay`.

    Args:
        optimizer: An optimizer without state.
        latents: The parameters.
        schedulers: All learning-rate schedulers.
    """
    for group in [group for group in optimizer.param_groups if group.get("weight_decay")]:
        own = {id(param) for param in group["params"]}
        inside = [latent for latent in latents if id(latent) in own]
        changes = {"weight_decay": 0.0, EFFECTIVE_DECAY: group["weight_decay"]}
        move_to_own_group(optimizer, inside, schedulers, **changes)


def add_effective_decay(optimizer: Optimizer, found: Iterable[Parametrized]) -> None:
    """Add the gradient of the decay of weights to that of the latents which `set_latents_apart` has marked.

    Args:
        optimizer: The optimizer that is about to step.
        found: Companded weights.
    """
    groups = [group for group in optimizer.param_groups if EFFECTIVE_DECAY in group]
    decays = {id(param): group[EFFECTIVE_DECAY] for group in groups for param in group["params"]}
    for part in found:
        latent = latent_of(part)
        if id(latent) in decays and latent.grad is not None:
            latent.grad.add_(part.step.decay_gradient(latent), alpha=decays[id(latent)])
