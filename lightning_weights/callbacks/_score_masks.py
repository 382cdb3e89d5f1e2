"""Put score masks into a network, and let their scores begin."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from lightning_weights.callbacks._injection import check_weights, raw_weights
from lightning_weights.functional.pruning import initial_scores, kept_count
from lightning_weights.modules.hard_concrete_gate import HardConcreteGate
from lightning_weights.modules.parametrized import find_parametrizations
from lightning_weights.modules.score_mask import ScoreMask, random_scores, refresh_masks


def masks_of(module: nn.Module) -> dict[str, ScoreMask]:
    """Return the score masks of a network by layer name."""
    return {found.name: found.step for found in find_parametrizations(module, ScoreMask)}


def put_masks(module: nn.Module, layers: Mapping[str, nn.Module], keep: float) -> None:
    """Put masks that keep everything on the weights of layers; those that have one keep it.

    Args:
        module: The network.
        layers: Layers of it, by name.
        keep: Fraction that the masks will keep.

    Raises:
        ValueError: If a weight is shared, has no values, another parametrization, or would be left without an element.
        ShardedParameterError: If a weight is sharded.
    """
    check_weights(module, layers, "prune")
    for name, layer in layers.items():
        with _naming(name):
            kept_count(raw_weights(layer)[0].numel(), keep)
        steps = list(layer.parametrizations["weight"]) if is_parametrized(layer, "weight") else []
        if any(not isinstance(step, (HardConcreteGate, ScoreMask)) for step in steps):
            raise ValueError(f"the weight of {name} has another parametrization; remove it, or exclude the layer")
    present = masks_of(module)
    for name, layer in layers.items():
        if name not in present:
            weight = raw_weights(layer)[0].detach()
            # all scores equal: they begin with the phase, when the weights are worth something
            mask = ScoreMask(torch.ones_like(weight), keep)
            mask.refresh(weight.numel())
            register_parametrization(layer, "weight", mask.train(layer.training))


@torch.no_grad()
def begin_scores(
    module: nn.Module, init: Literal["scaled", "random"], keep: float, scope: Literal["layer", "global"]
) -> None:
    """Let the scores of all masks begin, and prune.

    Args:
        module: Network with masks.
        init: Whether scores start from the weights or at random.
        keep: Fraction to keep.
        scope: Whether layers are pruned each for itself or together.

    Raises:
        ValueError: If scores shall start from weights that are all zero.
    """
    masks, layers = masks_of(module), dict(module.named_modules())
    starts: dict[str, Tensor] = {}
    for name in masks:
        weight = raw_weights(layers[name])[0]
        with _naming(name):
            starts[name] = initial_scores(weight) if init == "scaled" else random_scores(weight)
    for name, mask in masks.items():
        mask.scores.copy_(starts[name])
    threshold(masks, keep, scope)


def threshold(masks: Mapping[str, ScoreMask], keep: float, scope: Literal["layer", "global"]) -> None:
    """Prune by the scores as they are.

    Args:
        masks: Masks by layer name.
        keep: Fraction to keep.
        scope: Whether layers are pruned each for itself or together.

    Raises:
        ValueError: If a layer would be left without an element.
    """
    counts: dict[str, int] = {}
    for name, mask in masks.items():
        with _naming(name):
            counts[name] = kept_count(mask.scores.numel(), keep)
    for name, mask in masks.items():
        mask.keep = keep
        if scope == "layer":
            mask.refresh(counts[name])
    if scope == "global":
        refresh_masks(list(masks.values()), scope)


def is_pruned(module: nn.Module) -> bool:
    """Tell whether a mask of the network leaves something out."""
    return any(int(mask.kept) < mask.scores.numel() for mask in masks_of(module).values())


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"layer {layer}: {error}") from error
