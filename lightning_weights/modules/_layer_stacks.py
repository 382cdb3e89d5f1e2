"""Stacks of blocks in a network: where they stand, and which of their layers share a block."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_weights.modules._wrapped import inner_name, plain
from lightning_weights.modules.stage_shared_stack import StageSharedStack

CONTAINERS = (nn.ModuleList, nn.Sequential)
SILENT = (nn.Dropout, nn.Identity)  # what has no weights and changes nothing in evaluation
HEADS = ("num_heads", "num_attention_heads", "num_key_value_heads", "num_key_value_groups", "n_heads", "nhead", "heads")
SCORES = ("head_dim", "attention_head_size", "scaling", "scale", "is_causal", "is_decoder", "batch_first")
KINDS = ("layer_type", "attention_type", "sliding_window")
NORMS = ("eps", "variance_epsilon", "norm_first")
WINDOWS = ("stride", "padding", "padding_mode", "dilation")
FUNCTIONS = ("activation", "activation_fn", "act_fn", "act")


class LayerStack(NamedTuple):
    """Blocks that follow each other in a network.

    Attributes:
        name: Where they stand.
        blocks: One block per stage.
        repeats: How often each is applied in a row.
    """

    name: str
    blocks: list[nn.Module]
    repeats: list[int]


def find_stack(network: nn.Module, layers: str | None) -> LayerStack:
    """Return a stack of a network.

    Args:
        network: Where to look.
        layers: Name of the stack; ``None`` for the only one in which layers share blocks.

    Raises:
        ValueError: If there is no such stack, or not only one, or layers share a block that are no neighbours.
    """
    stacks = {
        inner_name(name): part
        for name, part in network.named_modules()
        if isinstance(part, CONTAINERS) and len(part) and name
    }
    outer = [name for name in stacks if not any(name.startswith(f"{other}.") for other in stacks)]
    listed = ", ".join(outer) or "there are none"
    if layers is None:
        shared = [name for name, part in stacks.items() if _shares(part)]
        if len(shared) != 1:
            raise ValueError(
                f"layers is None, and {', '.join(shared) or 'no stack'} of {type(network).__name__} shares blocks "
                f"between layers; name one of its stacks: {listed}"
            )
        layers = shared[0]
    if layers not in stacks:
        raise ValueError(
            f"layers is {layers!r}; allowed is the name of a ModuleList, Sequential or StageSharedStack in "
            f"{type(network).__name__}: {listed}"
        )
    stack = stacks[layers]
    if isinstance(stack, StageSharedStack):
        return LayerStack(layers, list(stack), list(stack.repeats))
    runs = [list(run) for _, run in groupby(stack, key=id)]
    blocks = [run[0] for run in runs]
    if len(set(map(id, blocks))) != len(blocks):
        raise ValueError(
            f"{layers} has layers that share a block and are no neighbours; allowed are stages of neighbours"
        )
    return LayerStack(layers, blocks, [len(run) for run in runs])


def _shares(stack: Any) -> bool:
    return isinstance(stack, StageSharedStack) or len(set(map(id, stack))) < len(stack)


def class_of(module: nn.Module) -> type[nn.Module]:
    """Return a module's class as it was before FSDP2 made another one of it."""
    return next(kind for kind in type(plain(module)).__mro__ if not kind.__name__.startswith("FSDP"))


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and persistent buffers by name, not copies of them."""
    state = module.state_dict(keep_vars=True)
    return {inner_name(name): value for name, value in state.items() if isinstance(value, Tensor)}


def facts_of(module: nn.Module, without: str | None = None) -> dict[str, Any]:
    """Return what a module computes beside its tensors: numbers of heads, eps of normalisations, activations.

    Args:
        module: A block, or a network.
        without: Name of a part to leave out.

    Returns:
        Numbers and texts by the name of what has them; ``class`` is the module's own.
    """
    module = plain(module)
    facts: dict[str, Any] = {"class": class_of(module).__name__} if without is None else {}
    for name, part in module.named_modules():
        name = inner_name(name)
        if without is not None and (name == without or name.startswith(f"{without}.")):
            continue
        prefix = f"{name}." if name else ""
        for attribute in (*HEADS, *SCORES, *KINDS, *NORMS, *WINDOWS, *FUNCTIONS):
            value = getattr(part, attribute, None)
            if isinstance(value, (int, float, str)):
                facts[prefix + attribute] = value
            elif isinstance(value, tuple):
                facts[prefix + attribute] = str(value)  # json has lists alone
            elif attribute in FUNCTIONS and callable(value) and not isinstance(value, nn.Module):
                facts[prefix + attribute] = _called(value)
        leaf = not list(part.children()) and not part.state_dict() and not isinstance(part, CONTAINERS)
        if name and leaf and not isinstance(part, SILENT) and "drop" not in type(part).__name__.lower():
            facts[name] = repr(part)
    return facts


def _called(function: Any) -> str:
    if isinstance(function, partial):
        return f"{_called(function.func)}{function.args}{function.keywords}"
    return getattr(function, "__name__", type(function).__name__)


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Return what differs between two mappings of facts, in words, with both values."""
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    return [f"{name} is {_shown(here, name)} here and {_shown(there, name)} there" for name in names]


def _shown(facts: Mapping[str, Any], name: str) -> str:
    return repr(facts[name]) if name in facts else "missing"


def spread(families: Sequence[Sequence[nn.Module]]) -> float:
    """Return the root of the mean square distance of blocks from their family's mean, relative to its norm.

    Args:
        families: Families of blocks with the same tensors.

    Examples:
        >>> import torch
        >>> blocks = [nn.Linear(1, 1, bias=False) for _ in range(2)]
        >>> blocks[0].weight.data[:], blocks[1].weight.data[:] = 0.9, 1.1
        >>> round(spread([blocks]), 3)
        0.1
    """
    apart = size = 0.0
    for family in families:
        for alike in zip(*(block.parameters() for block in family), strict=True):
            values = [param.detach().float() for param in alike]
            mean = sum(values[1:], start=values[0]) / len(values)
            apart += sum(_number((value - mean).square().sum()) for value in values)
            size += len(values) * _number(mean.square().sum())
    return (apart / size) ** 0.5 if size else 0.0


def _number(value: Any) -> float:
    return float(value.full_tensor() if hasattr(value, "full_tensor") else value)
