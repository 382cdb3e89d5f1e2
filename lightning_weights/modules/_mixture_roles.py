"""What each layer of a plain network becomes when it is made to grow: stem, inner layer or head."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_weights.errors import name_list

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
CONSTANT, DATA, SPLIT, OUTPUT = "constant", "data", "split", "output"
# what mixes or reorders channels, so that halves of a network are no networks of their own
MIXES = frozenset({
    "cat", "concat", "concatenate", "stack", "chunk", "split", "unbind", "softmax", "log_softmax", "matmul", "bmm",
    "einsum", "scaled_dot_product_attention", "layer_norm", "group_norm", "pixel_shuffle", "channel_shuffle",
    "normalize", "Softmax", "LogSoftmax", "PixelShuffle", "PixelUnshuffle", "ChannelShuffle",
})  # fmt: skip
ASKS = frozenset({"size", "dim", "numel", "getattr"})


class Role(NamedTuple):
    """Which sides of a layer are halved.

    Attributes:
        split_in: Whether a member has half of the inputs.
        split_out: Whether a member has half of the outputs.
    """

    split_in: bool
    split_out: bool


def find_roles(
    network: nn.Module, stem: Sequence[str] | None = None, head: Sequence[str] | None = None
) -> dict[str, Role]:
    """Return the role of every layer with a weight.

    Args:
        network: A plain network.
        stem: Names of the layers that the input comes to. ``None``: they are found by tracing the network.
        head: Names of the layers that the output comes from. ``None``: the same.

    Raises:
        ValueError: If the network has something that cannot be halved, or its ends cannot be found.
    """
    layers = {name: part for name, part in network.named_modules() if isinstance(part, LAYERS)}
    _check_parts(network)
    if stem is None or head is None:
        found_stem, found_head = _ends(network, layers)
        stem = found_stem if stem is None else stem
        head = found_head if head is None else head
    stem, head = name_list("stem", stem, " or None"), name_list("head", head, " or None")
    for argument, names in (("stem", stem), ("head", head)):
        if not names or not set(names) <= layers.keys():
            raise ValueError(
                f"{argument} is {names}; allowed are names among {', '.join(layers) or 'none: there are no layers'}"
            )
    if both := sorted(set(stem) & set(head)):
        raise ValueError(
            f"{', '.join(both)} is both stem and head, so that there is nothing to grow between input and output; "
            f"allowed are networks with at least two layers in a row"
        )
    return {name: Role(name not in stem, name not in head) for name in layers}


def _check_parts(network: nn.Module) -> None:
    """Refuse what has parameters, or couples channels, and is neither a known layer nor a known norm."""
    owners: dict[int, str] = {}
    for name, part in network.named_modules():
        label = f"{name or 'the network itself'} ({type(part).__name__})"
        own = list(part.parameters(recurse=False))
        known = isinstance(part, (*LAYERS, *NORMS))
        # told by name, too: without weights and biases norms have no parameters
        if (own and not known) or isinstance(part, (nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention)):
            raise ValueError(
                f"{label} cannot be halved: it normalises over, attends with or otherwise mixes all channels, or its "
                f"parameters are of an unknown kind. Allowed with parameters are Conv1d, Conv2d, Linear, BatchNorm1d "
                f"and BatchNorm2d"
            )
        if known and _has_own_forward(part):
            raise ValueError(
                f"{label} has a forward pass of its own, which a mixture layer would not have; allowed are layers that "
                f"compute what PyTorch's do"
            )
        if (known and is_parametrized(part)) or (isinstance(part, LAYERS) and "weight" not in part._parameters):
            raise ValueError(
                f"{label} has a weight that something else computes (a parametrization, weight_norm, pruning); make it "
                f"permanent first"
            )
        if isinstance(part, NORMS) and part.momentum is None:
            raise ValueError(f"{label} averages over all batches; allowed is a momentum, such as 0.1")
        for param in own:
            if id(param) in owners:
                raise ValueError(f"{label} shares a parameter with {owners[id(param)]}; untie them first")
            owners[id(param)] = name


def _has_own_forward(part: nn.Module) -> bool:
    kind = next(kind for kind in (*LAYERS, *NORMS) if isinstance(part, kind))
    methods = ("forward", "_conv_forward")
    return any(getattr(type(part), name, None) is not getattr(kind, name, None) for name in methods)


def _ends(network: nn.Module, layers: Mapping[str, nn.Module]) -> tuple[list[str], list[str]]:
    """Return the layers that the input comes to and those that the output comes from."""
    before = set(vars(network))
    try:
        graph = fx.Tracer().trace(network)
    except Exception as error:
        raise ValueError(
            f"{type(network).__name__} cannot be traced by torch.fx ({error}), so that its first and last layers are "
            f"not known; name them in stem and head"
        ) from error
    finally:
        for name in set(vars(network)) - before:  # torch.fx keeps tensors that forward makes on the network itself
            delattr(network, name)
    modules = dict(network.named_modules())
    layered = [node for node in graph.nodes if node.op == "call_module" and node.target in layers]
    inner = _reaching(layered)
    head = [str(node.target) for node in layered if node not in inner]
    entered: dict[str, set[str]] = {}  # what comes to each layer
    states: dict[fx.Node, str] = {}
    for node in graph.nodes:
        states[node] = _state(node, states, modules, head, entered)
    reused = [name for name, sources in entered.items() if len(sources) > 1]
    reused += [str(node.target) for node in layered if node in inner and node.target in head]
    if reused:
        raise ValueError(
            f"{', '.join(reused)} is used more than once, at an end of the network and inside of it, so that it cannot "
            f"be halved in one way; allowed is a layer for each place"
        )
    return [name for name, sources in entered.items() if sources == {DATA}], list(dict.fromkeys(head))


def _reaching(layered: Sequence[fx.Node]) -> set[fx.Node]:
    """Return all nodes from which a layer is reached."""
    found: set[fx.Node] = set()
    waiting = [source for node in layered for source in node.all_input_nodes]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _state(
    node: fx.Node,
    states: Mapping[fx.Node, str],
    modules: Mapping[str, nn.Module],
    head: list[str],
    entered: dict[str, set[str]],
) -> str:
    """Return whether what a node computes has halves, and note what comes to each layer."""
    if node.op == "placeholder":
        return DATA
    sources = {states[source] for source in node.all_input_nodes} - {CONSTANT}
    if not sources or _name(node, modules) in ASKS:
        return CONSTANT
    part = modules.get(str(node.target)) if node.op == "call_module" else None
    if len(sources) > 1 and node.op != "output":
        raise ValueError(
            f"{node.target} (node {node.name}) joins {' and '.join(sorted(sources))}, of which only features have "
            f"halves; allowed are joints of features, or of outputs, among themselves"
        )
    (state,) = sources if len(sources) == 1 else (OUTPUT,)
    if isinstance(part, LAYERS):
        entered.setdefault(str(node.target), set()).add(state)
        return OUTPUT if node.target in head else SPLIT
    if isinstance(part, NORMS) and state != SPLIT:
        raise ValueError(
            f"{node.target} ({type(part).__name__}) normalises the network's {state}, which has no halves; allowed are "
            f"norms between the first layers and the last"
        )
    if state == SPLIT and _name(node, modules) in MIXES:
        raise ValueError(
            f"{node.target} (node {node.name}) mixes or reorders the channels of features, so that the halves are no "
            f"networks of their own; allowed are sums of features and what treats every channel alike"
        )
    return state


def _name(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    target: Any = node.target
    return "getattr" if target in (getattr, operator.attrgetter) else getattr(target, "__name__", str(target))
