"""Networks of any depth that begin with a learngene's weights."""

import json
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_weights.errors import LightningWeightsWarning, MissingDependencyError, check_number
from lightning_weights.functional.learngene_sws import resize_positions as resized
from lightning_weights.functional.learngene_sws import stage_map
from lightning_weights.modules._layer_stacks import differences, facts_of, find_stack, tensors_of
from lightning_weights.modules._wrapped import plain
from lightning_weights.modules.learngene import Learngene, architecture_of
from lightning_weights.modules.vision_transformer import CompactViT

POSITIONS = ("position", "pos_embed")  # in the names of what is stretched to other image sizes
SIZES = ("image_size",)
DEPTH = "num_hidden_layers"  # what transformers call it, whatever it is called in a configuration
# of transformers' configurations: what neither shapes nor parts show
COMPARED = ("hidden_act", "rope_parameters", "rope_scaling", "rope_theta", "position_embedding_type")


def expand(
    learngene: Learngene,
    depth: int | None = None,
    mapping: Sequence[int] | None = None,
    copy_head: bool = True,
    network: nn.Module | None = None,
    resize_positions: bool = False,
) -> nn.Module:
    """Give a network of any depth the weights of a learngene: every layer gets its own copy of a stage's block.

    Nothing is loaded unless everything fits: all tensors of the network have to be in the learngene and the other way
    round, and numbers of heads, eps, activations and the order of pooling and normalisation have to be the same.

    Args:
        learngene: From ``extract_learngene`` or ``Learngene.load``.
        depth: Number of layers, from 1. ``None``: as many as ``mapping`` or ``network`` has; without either, the
            network is the auxiliary one with weights of its own in every layer.
        mapping: Stage of every layer. ``None``: [`stage_map`][lightning_weights.functional.learngene_sws.stage_map].
        copy_head: Whether the head is copied; for other classes it is not, and stays as it is built.
        network: Network to fill, changed in place. ``None``: one is built, of ``CompactViT`` or of transformers, as the
            auxiliary network was.
        resize_positions: Whether position embeddings are stretched to the network's image size, if that is another.

    Returns:
        The network, whose layers share nothing.

    Raises:
        ValueError: If something does not fit, with both values; if the mapping has another length or other stages; if
            nobody knows how to build a network.
        MissingDependencyError: If a network of transformers is to be built without that package.

    Warns:
        LightningWeightsWarning: If the mapping goes back to an earlier stage.

    Source: Xia et al. 2024, arXiv:2404.16897. Unlike there, another number of heads is refused.

    Examples:
        >>> from lightning_weights.modules import extract_learngene
        >>> aux, x = CompactViT(depth=5, repeats=[2, 1, 2]), torch.randn(2, 64)
        >>> learngene = extract_learngene(aux)
        >>> torch.equal(expand(learngene)(x), aux(x)), len(expand(learngene, depth=9).blocks)
        (True, 9)
    """
    if depth is not None:
        check_number("depth", depth, low=1, whole=True)
    if network is None:
        stages = _stages(learngene, depth, mapping)
        network = _build(learngene.architecture, len(stages), copy_head)
        network.to(next(tensor.dtype for tensor in learngene.stages[0].values() if tensor.is_floating_point()))
        _fill(learngene, network, stages, copy_head, resize_positions)
        return network
    layers = len(_layers(network, learngene.layers))
    if depth not in (None, layers):
        raise ValueError(f"depth is {depth}, and the network has {layers} layers in {learngene.layers}")
    _fill(learngene, plain(network), _stages(learngene, layers, mapping), copy_head, resize_positions)
    return network


def _stages(learngene: Learngene, depth: int | None, mapping: Sequence[int] | None) -> list[int]:
    count = len(learngene.stages)
    if mapping is None:
        return learngene.mapping if depth is None else stage_map(depth, count)
    stages = list(mapping)
    if depth is not None and len(stages) != depth:
        raise ValueError(f"mapping has {len(stages)} entries for {depth} layers; allowed is one stage for every layer")
    if not stages:
        raise ValueError("mapping is empty; allowed is a list with the stage of every layer")
    for layer, stage in enumerate(stages):
        check_number(f"mapping[{layer}]", stage, low=0, high=count, whole=True)
    if any(after < before for before, after in pairwise(stages)):
        warnings.warn(
            f"mapping is {stages}, which goes back to an earlier stage; blocks were trained to come in order",
            LightningWeightsWarning,
            stacklevel=3,
        )
    return [int(stage) for stage in stages]


def _layers(network: nn.Module, name: str) -> list[nn.Module]:
    stack = find_stack(plain(network), name)
    if any(count > 1 for count in stack.repeats):
        raise ValueError(f"the layers of {name} share blocks, {stack.repeats} of them; allowed are layers of their own")
    return stack.blocks


def _build(architecture: Mapping[str, Any], depth: int, copy_head: bool) -> nn.Module:
    arguments = dict(architecture)
    name = arguments.pop("class", "")
    if name == "CompactViT":
        if not copy_head:
            return CompactViT(depth=depth, **arguments)
        with torch.device("meta"):  # drawing weights that are replaced at once would take most of the time
            network = CompactViT(depth=depth, **arguments)
        return network.to_empty(device="cpu")
    if not name.startswith("transformers."):
        raise ValueError("the learngene does not say how to build a network; give one of the wanted depth as network")
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError("transformers", "hf", "Building a network of transformers") from error
    model_class = getattr(transformers, name.removeprefix("transformers."))
    config_class = model_class.config_class
    described = json.loads(json.dumps(arguments["config"]))
    described[config_class.attribute_map.get(DEPTH, DEPTH)] = depth
    if kinds := described.get("layer_types"):  # all blocks of a learngene are of one kind
        described["layer_types"] = kinds[:1] * depth
    return model_class(config_class.from_dict(described)).train()


def _fill(learngene: Learngene, network: nn.Module, stages: list[int], copy_head: bool, resize: bool) -> None:
    """Check everything, then copy."""
    blocks = _layers(network, learngene.layers)
    if len(blocks) != len(stages):
        raise ValueError(
            f"a {type(network).__name__} of {len(stages)} layers has {len(blocks)} in {learngene.layers}: its depth "
            f"is not set by {DEPTH}; build one yourself and give it as network"
        )
    _check_architecture(learngene, network, copy_head, resize)
    pairs: list[tuple[Tensor, Tensor]] = []
    problems: list[str] = []
    told: set[str] = set()  # what is wrong in one layer is wrong in all, as a rule
    for layer, (stage, block) in enumerate(zip(stages, blocks, strict=True)):
        wrong = [text for text in differences(facts_of(block), learngene.block) if text not in told]
        told.update(wrong)
        problems += [f"{learngene.layers}.{layer}: {text}" for text in wrong]
        found = _pair(tensors_of(block), learngene.stages[stage], f"{learngene.layers}.{layer}.")
        pairs, problems = pairs + found[0], problems + found[1]
    inside = f"{learngene.layers}."
    rest = {name: tensor for name, tensor in tensors_of(network).items() if not name.startswith(inside)}
    parts: list[dict[str, Any]] = [rest, learngene.rest, facts_of(network, learngene.layers), learngene.network]
    if not copy_head:
        parts = [{name: value for name, value in part.items() if not learngene.in_head(name)} for part in parts]
    problems += differences(*parts[2:])
    found = _pair(*parts[:2], prefix="", resize=resize, head=learngene.head)
    if problems or found[1]:
        raise ValueError(
            f"the learngene does not fit {type(network).__name__} (here is the network, there the learngene): "
            f"{'; '.join(problems + found[1])}"
        )
    for target, source in pairs + found[0]:
        _copy(target, source)


def _check_architecture(learngene: Learngene, network: nn.Module, copy_head: bool, resize: bool) -> None:
    here = architecture_of(network)
    there = learngene.architecture
    if here.get("class") != there.get("class"):
        return  # names, shapes and facts say the rest
    if "config" in here:
        here, there = ({k: part["config"].get(k) for k in COMPARED} for part in (here, there))
    free = (SIZES if resize else ()) + (() if copy_head else ("num_classes",))
    wrong = differences(*({k: v for k, v in part.items() if k not in free} for part in (here, there)))
    if not wrong:
        return
    ways = {"image_size": "use resize_positions=True", "num_classes": "use copy_head=False"}
    hints = [f"for {name} {way}" for name, way in ways.items() if any(text.startswith(name) for text in wrong)]
    raise ValueError(
        f"the learngene does not fit {type(network).__name__} (here is the network, there the learngene): "
        f"{'; '.join(wrong)}. {'; '.join(hints) or 'Build the network with the same values'}"
    )


def _pair(
    here: Mapping[str, Tensor], there: Mapping[str, Tensor], prefix: str, resize: bool = False, head: str = ""
) -> tuple[list[tuple[Tensor, Tensor]], list[str]]:
    pairs, problems = [], []
    for name in {**here, **there}:
        if name not in here or name not in there:
            place, missing = ("network", "learngene") if name in here else ("learngene", "network")
            problems.append(f"{prefix}{name} is in the {place} and not in the {missing}")
            continue
        target, source = here[name], there[name]
        if target.is_meta or is_lazy(target):
            problems.append(f"{prefix}{name} has no values yet: move the network from the meta device first")
        elif target.shape == source.shape:
            pairs.append((target, source))
        elif resize and any(word in name for word in POSITIONS) and target.ndim == source.ndim == 3:
            pairs.append((target, resized(source, target.shape[1])))
        else:
            shapes = f"{tuple(target.shape)} here and {tuple(source.shape)} there"
            mended = any(word in name for word in POSITIONS) and target.ndim == source.ndim == 3 and not resize
            hint = ", which resize_positions=True may mend" if mended else ""
            hint = ", which copy_head=False leaves out" if head and f"{name}.".startswith(f"{head}.") else hint
            problems.append(f"{prefix}{name} has shape {shapes}{hint}")
    return pairs, problems


@torch.no_grad()
def _copy(target: Any, source: Tensor) -> None:
    source = source.to(target.dtype)
    if hasattr(target, "placements"):
        from torch.distributed.tensor import distribute_tensor  # costs half a second where nothing is sharded

        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements)
    target.copy_(source)
