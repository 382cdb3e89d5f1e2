"""Giving neighbouring layers of a network one and the same weights."""

import warnings
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import nn

from lightning_weights.errors import LightningWeightsWarning, check_choice
from lightning_weights.functional.learngene_sws import check_repeats
from lightning_weights.modules._layer_stacks import differences, facts_of, find_stack, tensors_of
from lightning_weights.modules._wrapped import plain
from lightning_weights.modules.stage_shared_stack import StageSharedStack


def share_stages(
    model: nn.Module, layers: str, repeats: Sequence[int], source: Literal["first", "mean"] = "first"
) -> nn.Module:
    """Let the layers of every stage of a network be one block.

    It works with any network that keeps its layers in a ``ModuleList`` or ``Sequential``, such as the encoders of
    transformers, and leaves their calls to the network. Parameters are counted and trained once per stage; a state dict
    names them once per layer, so keep what was trained with
    [`extract_learngene`][lightning_weights.modules.extract_learngene]. Make the optimizer afterwards.

    Args:
        model: Network, changed in place.
        layers: Name of the stack of layers, such as ``encoder.layer``.
        repeats: Number of layers of every stage, in order, all layers together.
        source: Whether a stage gets the weights of its ``first`` layer, or the ``mean`` over its layers.

    Returns:
        The network.

    Raises:
        ValueError: If the stages do not make up the layers, layers share blocks already or differ in more than their
            weights, or a name or choice is unknown.

    Warns:
        LightningWeightsWarning: If the layers keep keys and values of their own for generation, which shared ones would
            overwrite.

    Source: Xia et al. 2024, arXiv:2404.16897.

    Examples:
        >>> from lightning_weights.modules import CompactViT
        >>> network = share_stages(CompactViT(depth=5), "blocks", repeats=(2, 1, 2))
        >>> network.blocks[0] is network.blocks[1], network.blocks[1] is network.blocks[2]
        (True, False)
    """
    check_choice("source", source, ("first", "mean"))
    network = plain(model)
    stack = find_stack(network, layers)
    if any(count > 1 for count in stack.repeats):
        raise ValueError(
            f"the layers of {layers} share blocks already, {stack.repeats} of them; allowed are layers of their own"
        )
    counts = check_repeats(repeats, len(stack.blocks))
    ends = list(accumulate(counts))
    stages = [stack.blocks[end - count : end] for end, count in zip(ends, counts, strict=True)]
    for stage in stages:
        _check_alike(layers, stage)
    if any(_caches(part) for part in stack.blocks[0].modules()):
        warnings.warn(
            f"the layers of {layers} keep keys and values by their number, and layers that share a block have one "
            f"number; generate with use_cache=False",
            LightningWeightsWarning,
            stacklevel=2,
        )
    if source == "mean":
        for stage in stages:
            _average(stage)
    container = network.get_submodule(layers)
    if isinstance(container, StageSharedStack):
        shared = StageSharedStack([stage[0] for stage in stages], counts, container.drop_path)
        network.set_submodule(layers, shared.train(container.training))
        return model
    for end, stage in zip(ends, stages, strict=True):
        for index in range(end - len(stage), end):
            container[index] = stage[0]
    return model


def _check_alike(layers: str, stage: Sequence[nn.Module]) -> None:
    kinds = [{**facts_of(block), **{k: tuple(v.shape) for k, v in tensors_of(block).items()}} for block in stage]
    for kind in kinds[1:]:
        if found := differences(kinds[0], kind):
            raise ValueError(
                f"two layers of {layers} differ in more than their weights and cannot share them: {'; '.join(found)}"
            )


def _caches(part: nn.Module) -> bool:
    return getattr(part, "layer_idx", None) is not None and bool(getattr(part, "is_causal", False))


@torch.no_grad()
def _average(stage: Sequence[nn.Module]) -> None:
    others = [tensors_of(block) for block in stage]
    for name, tensor in tensors_of(stage[0]).items():
        if tensor.is_floating_point():
            wide = torch.promote_types(tensor.dtype, torch.float32)
            tensor.copy_(torch.stack([other[name].to(wide) for other in others]).mean(0))
