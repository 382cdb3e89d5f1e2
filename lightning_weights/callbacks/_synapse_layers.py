"""Which layers of a network get devices, and which have some."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_weights.callbacks._injection import named_layers, weight_layers
from lightning_weights.callbacks._replacement import check_replaceable, replace_layers
from lightning_weights.errors import ShardedParameterError
from lightning_weights.modules.synapse_array import COUNTS, SynapseArray, check_finite, check_precision, devices_of
from lightning_weights.modules.synapse_conv import SynapseConv2d
from lightning_weights.modules.synapse_layer import SynapseLayer
from lightning_weights.modules.synapse_linear import SynapseLinear
from lightning_weights.modules.synapse_settings import SynapseSettings

KINDS: dict[type[nn.Module], Any] = {nn.Linear: SynapseLinear, nn.Conv2d: SynapseConv2d}
SEED_STEP = 1_000_003  # from layer to layer, so that neighbouring seeds share no layer


def put_devices(
    module: nn.Module, settings: SynapseSettings, chosen: list[str] | None, excluded: list[str] | None
) -> None:
    """Put devices behind the weights of layers; those that have some already stay as they are.

    Args:
        module: Network, changed in place.
        settings: How synapses are made; each layer gets a seed of its own.
        chosen: Patterns of names; None for all linear layers and two-dimensional convolutions.
        excluded: Patterns of names.

    Raises:
        ValueError: If a name fits nothing, a layer cannot be replaced, no layer is left, devices are others, or a
            weight is in 16 bits, empty or not finite.
        ShardedParameterError: If a weight is sharded.
    """
    layers = weight_layers(module) if chosen is None else named_layers(module, chosen, "modules")
    left_out = named_layers(module, excluded, "exclude") if excluded else {}
    layers = {name: layer for name, layer in layers.items() if name not in left_out}
    for name, layer in layers.items():
        if isinstance(layer, SynapseLayer) and (texts := _differences(settings, layer.settings)):
            raise ValueError(f"{name} has other devices: {'; '.join(texts)}; use the same, or a new network")
    fitting = {name: layer for name, layer in layers.items() if isinstance(layer, tuple(KINDS))}
    if other := [f"{name} ({type(layer).__name__})" for name, layer in layers.items() if name not in fitting]:
        if chosen is not None:
            raise ValueError(
                f"modules names {', '.join(other)}; only nn.Linear and nn.Conv2d can have devices, so leave it out"
            )
        rank_zero_info(f"HardwareSynapses leaves as they are: {', '.join(other)}")
    if not fitting:
        raise ValueError(
            f"modules={chosen} without exclude={excluded} leaves no nn.Linear or nn.Conv2d whose weight devices could "
            f"hold"
        )
    fresh = {name: layer for name, layer in fitting.items() if not isinstance(layer, SynapseLayer)}
    check_replaceable(module, fresh, "modules")
    for name, layer in fresh.items():  # all of them, before the first one is programmed
        for own, param in layer.named_parameters(recurse=False):
            check_precision(param)
            check_finite(f"{name}.{own}", param)
    replacements: dict[nn.Module, nn.Module] = {}
    for number, (name, layer) in enumerate(fitting.items()):
        if name in fresh:
            kind = next(made for plain, made in KINDS.items() if isinstance(layer, plain))
            replacements[layer] = kind.from_layer(layer, settings.with_seed(settings.seed + SEED_STEP * number))
    replace_layers(module, replacements)


def _differences(settings: SynapseSettings, others: SynapseSettings) -> list[str]:
    """Name what is different, but for the seed, which every layer has its own of."""
    names = ("w_scale", "input_bits", "error_bits")
    pairs = {name: (getattr(settings, name), getattr(others, name)) for name in names}
    texts = [f"{name} is {own!r}, was {other!r}" for name, (own, other) in pairs.items() if own != other]
    return settings.differences(others.as_dict()) + texts


def arrays_of(module: nn.Module) -> Iterator[tuple[str, Tensor, SynapseArray]]:
    """Yield name, parameter and devices of every array in a network.

    Args:
        module: Network.

    Raises:
        ShardedParameterError: If something has put another parameter in the place of one with devices.
    """
    for name, part in module.named_modules():
        if isinstance(part, SynapseLayer):
            for own, array in part.arrays().items():
                weight = getattr(part, own)
                if devices_of(weight) is not array:
                    raise ShardedParameterError(
                        f"{name}.{own} is no longer the parameter that its devices read out to: something has sharded "
                        f"or replaced it (FSDP), and arrays of devices are whole; use DDP, or one device"
                    )
                yield f"{name}.{own}", weight, array


def counted_in(module: nn.Module) -> dict[str, int]:
    """Return what all arrays of a network have counted, together."""
    counts = [array.counts.tolist() for _, _, array in arrays_of(module)]
    return {name: sum(count[place] for count in counts) for place, name in enumerate(COUNTS)}
