"""What a checkpoint says about Bone's blocks, and whether they are those that are asked for."""

from collections.abc import Mapping
from typing import Any

from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.modules.bone import BoneLinear


def descriptions(layers: Mapping[str, BoneLinear]) -> dict[str, dict[str, Any]]:
    """Return what a checkpoint has to know about each layer, by the name that the user knows."""
    return {plain_name(name): _description(layer) for name, layer in layers.items()}


def _description(layer: BoneLinear) -> dict[str, Any]:
    grid = None if layer.grid is None else list(layer.grid)
    return {"variant": layer.variant, "r": layer.r, "grid": grid, "shape": list(layer.bone_block.shape)}


def check_variant(saved: Mapping[str, Any], variant: str) -> None:
    """Check that the blocks of a checkpoint act as those that are asked for, whatever their shapes.

    Args:
        saved: What the callback saved in the checkpoint.
        variant: What is asked for.

    Raises:
        ValueError: If they do not.
    """
    variants = sorted({layer["variant"] for layer in saved["layers"].values()})
    if variants != [variant]:
        raise ValueError(
            f"the checkpoint's blocks are of variant {' and '.join(map(repr, variants))}, but variant is {variant!r}: "
            f"equal shapes mean different weights; give BoneFinetuning the checkpoint's variant"
        )


def check_blocks(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Check that a checkpoint has blocks for the same layers, in the same sizes.

    Args:
        saved: What the callback saved in the checkpoint.
        here: Descriptions of the layers that are to be loaded.

    Raises:
        ValueError: If it has others.
    """
    theirs = saved["layers"]
    if different := [name for name in {**theirs, **here} if theirs.get(name) != here.get(name)]:
        name = different[0]
        raise ValueError(
            f"the checkpoint has other blocks for {', '.join(different)} ({name}: {theirs.get(name)}, here "
            f"{here.get(name)}); give BoneFinetuning the arguments of the run that saved it"
        )
