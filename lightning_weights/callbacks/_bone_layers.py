"""Which layers of a network get Bone's blocks, and how they get them."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_weights.callbacks._replacement import check_replaceable, replace_layers
from lightning_weights.callbacks._targets import (
    check_excluded,
    check_same_targets,
    is_inside,
    name_matches,
    target_layers,
)
from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError
from lightning_weights.functional.bone import block_shape
from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.modules.bone import BoneLinear
from lightning_weights.modules.bone_files import BoneAdapter

HIGH_DECAY = 0.1
MERGE_FIRST = "merge the blocks first with BoneFinetuning().merge(module), or give the same arguments"


def bone_layers(module: nn.Module) -> dict[str, BoneLinear]:
    """Return the layers that have blocks, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BoneLinear)}


def layers_to_adapt(
    module: nn.Module, target_modules: str | Sequence[str], exclude_modules: Sequence[str], saved: Sequence[str]
) -> dict[str, nn.Linear]:
    """Return the layers that get blocks, or have them, by name.

    Args:
        module: Where to look.
        target_modules: As of ``target_layers``.
        exclude_modules: As of ``target_layers``.
        saved: Names of modules that are trained whole, which get none.

    Raises:
        ValueError: If no layer is left, one cannot be replaced, or others have blocks.
        ShardedParameterError: If a weight is sharded.
    """
    chosen = target_layers(module, target_modules, exclude_modules, (nn.Linear, BoneLinear))
    check_excluded(module, exclude_modules)
    layers = {name: layer for name, layer in chosen.items() if not any(is_inside(name, part) for part in saved)}
    if not layers:
        raise ValueError(f"modules_to_save leaves none of the target layers {', '.join(chosen)} to adapt")
    if present := bone_layers(module):
        check_same_targets(present, layers, target_modules, MERGE_FIRST)
    else:
        check_adaptable(module, layers)
    return layers


def check_adaptable(module: nn.Module, layers: Mapping[str, nn.Linear]) -> None:
    """Check that layers can be replaced, and are whole.

    Args:
        module: What the layers are part of.
        layers: Layers by name.

    Raises:
        ValueError: As of ``check_replaceable``.
        ShardedParameterError: If a weight is sharded.
    """
    for name, layer in layers.items():
        if isinstance(layer.weight, DTensor):
            raise ShardedParameterError(
                f"cannot adapt {name}: its weight is sharded (FSDP2) already; call BoneFinetuning(...).attach(network) "
                f"in configure_model before fully_shard, or use DDP"
            )
    check_replaceable(module, layers)


def ranks_of(names: Sequence[str], r: int, rank_pattern: Mapping[str, int]) -> dict[str, int]:
    """Return the block size of every layer.

    Args:
        names: Names of the layers.
        r: Size where no pattern fits.
        rank_pattern: Sizes by pattern, the first that fits counts.

    Raises:
        ValueError: If a pattern fits no layer.
    """
    for pattern in rank_pattern:
        if not any(name_matches(name, pattern) for name in names):
            raise ValueError(
                f"rank_pattern has {pattern!r}, which names no adapted layer; adapted are {', '.join(names)}"
            )
    fitting = {name: [rank for p, rank in rank_pattern.items() if name_matches(name, p)] for name in names}
    return {name: ranks[0] if ranks else r for name, ranks in fitting.items()}


def put_blocks(module: nn.Module, ranks: Mapping[str, int], variant: Any, sizes: Any, **options: Any) -> None:
    """Replace linear layers by ``BoneLinear``, all or none.

    Args:
        module: What the layers are part of.
        ranks: Block size of each layer, by name.
        variant: As of ``BoneLinear``.
        sizes: ``grid`` and ``mini_r`` as of ``BoneLinear``.
        options: Other arguments of ``BoneLinear``.

    Raises:
        ValueError: If a size or an option does not fit a layer.
    """
    layers = {name: module.get_submodule(name) for name in ranks}
    made: dict[nn.Module, nn.Module] = {}
    for name in ranks:
        block_shape_of(name, layers[name], variant, ranks[name], sizes)  # the constructor freezes the layer's weight
    for name, layer in layers.items():
        try:
            made[layer] = BoneLinear(layer, ranks[name], variant, **sizes, **options)
        except ValueError as error:
            raise ValueError(f"cannot adapt {name}: {error}") from error
    replace_layers(module, made)


def block_shape_of(name: str, layer: Any, variant: Any, r: int, sizes: Any) -> tuple[int, ...]:
    """Return the shape of a layer's block.

    Args:
        name: Name of the layer, for the message.
        layer: Linear layer.
        variant: As of ``BoneLinear``.
        r: Block size.
        sizes: ``grid`` and ``mini_r`` as of ``BoneLinear``.

    Raises:
        ValueError: If a size does not fit the layer.
    """
    try:
        return block_shape(variant, layer.out_features, layer.in_features, r, **sizes)
    except ValueError as error:
        raise ValueError(f"cannot adapt {name}: {error}") from error


def put_adapter(module: nn.Module, adapter: BoneAdapter, saved: Sequence[str], **options: Any) -> None:
    """Replace the layers of an adapter that was read from files, and take its values.

    Args:
        module: Where to put it; its names may have a prefix that the adapter does not know.
        adapter: The adapter.
        saved: Names of modules that are trained whole, which take what else the adapter holds.
        options: Other arguments of ``BoneLinear``.

    Raises:
        ValueError: If a layer of the adapter is not there, is there twice, or has another shape.
    """
    linear = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    places = {name: _place(name, linear) for name in adapter.blocks}
    check_adaptable(module, {place: linear[place] for place in places.values()})
    saved_tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    tensors = {name: value for name, value in saved_tensors.items() if any(is_inside(name, part) for part in saved)}
    others = {name: _place(name, tensors, "modules_to_save leaves out") for name in adapter.others}
    ranks = {place: adapter.ranks[name] for name, place in places.items()}
    sizes = {"grid": adapter.grid, "mini_r": adapter.mini_r}
    shapes = {
        name: block_shape_of(place, linear[place], adapter.variant, ranks[place], sizes)
        for name, place in places.items()
    }
    shapes |= {name: tuple(tensors[place].shape) for name, place in others.items()}
    for name, value in (adapter.blocks | adapter.others).items():
        if tuple(value.shape) != shapes[name]:
            raise ValueError(
                f"the adapter has {tuple(value.shape)} for {name}, which needs {shapes[name]}: it belongs to another "
                f"network"
            )
    put_blocks(module, ranks, adapter.variant, sizes, **options)
    with torch.no_grad():
        for name, place in places.items():
            module.get_submodule(place).bone_block.copy_(adapter.blocks[name])
        for name, place in others.items():
            tensors[place].copy_(adapter.others[name])


def _place(name: str, found: Mapping[str, Any], lacking: str = "the network does not have") -> str:
    """Find what an adapter calls `name` under its name in the module."""
    places = [place for place in found if f".{plain_name(place)}".endswith(f".{name}")]
    if len(places) != 1:
        why = f"of which the module has several: {', '.join(places)}" if places else f"which {lacking}"
        raise ValueError(f"the adapter has values for {name!r}, {why}; give the network that it was made for")
    return places[0]


def merge_layers(module: nn.Module) -> None:
    """Replace every layer with blocks by a plain linear one with the weight W'.

    Args:
        module: Network.

    Raises:
        ShardedParameterError: If a weight is sharded.
    """
    layers = bone_layers(module)
    for name, layer in layers.items():
        if isinstance(layer.weight, DTensor):
            raise ShardedParameterError(
                f"cannot merge {name}: its weight is sharded (FSDP2); save a checkpoint, and use attach and merge on "
                f"the network that loads it in one process"
            )
    replace_layers(module, {layer: layer.merge() for layer in layers.values()})


def check_same(
    layers: Mapping[str, BoneLinear], ranks: Mapping[str, int], variant: str, sizes: Any, **options: Any
) -> None:
    """Check that layers that have blocks already have those that are asked for.

    Args:
        layers: The layers by name.
        ranks: Block size of each layer that is asked for.
        variant: What is asked for.
        sizes: ``grid`` and ``mini_r`` that are asked for.
        options: Other arguments of ``BoneLinear`` that are asked for.

    Raises:
        ValueError: If one has others.
    """
    for name, layer in layers.items():
        asked = {"variant": variant, "r": ranks[name], **sizes, **options}
        here = {argument: getattr(layer, argument) for argument in asked}
        if here != asked:
            raise ValueError(f"{name} has blocks already, with {here}; asked for are {asked}; {MERGE_FIRST}")


@torch.no_grad()
def block_sizes(module: nn.Module) -> dict[str, Tensor]:
    """Return the norm of all blocks together and their largest entry."""
    blocks: list[Any] = [layer.bone_block for layer in bone_layers(module).values()]
    whole = [block.full_tensor() if hasattr(block, "full_tensor") else block for block in blocks]
    norms, largest = ([take(block.detach().float()) for block in whole] for take in (Tensor.norm, _largest))
    return {"block_norm": torch.stack(norms).norm(), "block_max": torch.stack(largest).max()}


def _largest(block: Tensor) -> Tensor:
    return block.abs().max()


def warn_if_decayed(optimizers: Iterable[torch.optim.Optimizer], blocks: Iterable[Tensor]) -> None:
    """Warn if an optimizer decays blocks so much that it undoes what they learn."""
    known = {id(block) for block in blocks}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    decays = [g.get("weight_decay", 0.0) for g in groups if any(id(param) in known for param in g["params"])]
    if max(decays, default=0.0) > HIGH_DECAY:
        warnings.warn(
            f"weight_decay {max(decays)} on Bone's blocks pulls the network back to where it started; the paper has 0",
            LightningWeightsWarning,
            stacklevel=3,
        )
