"""Networks made ready for certified training: interval-preserving weights, and BatchNorm after every hidden layer."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize

from lightning_weights.errors import ShardedParameterError
from lightning_weights.functional.intervals.tracing import asks_shape, head_node, traced

AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
BETWEEN = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity, nn.Flatten)
ADDITIONS = (operator.add, torch.add, "add", "add_")


@torch.no_grad()
def ibp_init_(
    module: nn.Module,
    *,
    output_layer: nn.Module | str | None = None,
    halve_after_add: bool = True,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    r"""Initialise weights in place so that the width of boxes neither grows nor shrinks from layer to layer.

    $$w \sim \mathcal{N}(0, \sigma^2), \qquad \sigma = \frac{\sqrt{2\pi}}{n}, \qquad n = \text{inputs per output}$$

    Every weight with two or more dimensions is drawn anew, except the output layer's; biases and BatchNorm stay. Where
    two branches are added, and an operation on the sum feeds a layer, that layer's weight is halved.

    Args:
        module: Network, which `torch.fx` can trace unless ``output_layer`` is given and ``halve_after_add`` is off.
        output_layer: The layer that makes the logits, or its name, which keeps its weights. ``None``: the last linear
            layer of the traced network.
        halve_after_add: Whether to halve the weights of layers behind an addition (Add → X → layer).
        generator: Source of the random numbers. ``None``: PyTorch's global one.

    Returns:
        σ of every weight that was drawn, by name, after halving.

    Raises:
        ValueError: If ``output_layer`` is no layer of the network, or a weight is parametrized or of a transposed
            convolution.
        ShardedParameterError: If a weight is sharded.

    Source: Shi et al., 2021, arXiv:2103.17268. The authors' code leaves out the last weight by name, which may be
        BatchNorm's; here the output layer is left out.

    Examples:
        >>> net = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
        >>> ibp_init_(net, generator=torch.Generator().manual_seed(0))
        {'0.weight': 0.0250...}
    """
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    modules = dict(module.named_modules())
    last = _output_layer(module, modules, output_layer)
    halved = _layers_behind_additions(traced(module), modules) if halve_after_add else set()
    weights = {name: p for name, p in module.named_parameters() if p.ndim >= 2 and not name.endswith("bias")}
    kept = {id(parameter) for parameter in last.parameters()}
    for name, weight in weights.items():
        if hasattr(weight, "placements"):
            raise ShardedParameterError(f"the weight {name!r} is sharded; initialise before sharding")
    for name, part in modules.items():
        if parametrize.is_parametrized(part):
            raise ValueError(f"module {name!r} is parametrized; allowed are plain weights: initialise first")
        _refuse_transposed(name, part)
    sigmas = {}
    for name, weight in weights.items():
        if id(weight) in kept:
            continue
        sigma = math.sqrt(2 * math.pi) / weight[0].numel()
        if modules[name.rpartition(".")[0]] in halved:
            sigma /= 2
        weight.normal_(0, sigma, generator=generator)
        sigmas[name] = sigma
    return sigmas


def _output_layer(net: nn.Module, modules: dict[str, nn.Module], given: nn.Module | str | None) -> nn.Module:
    if given is None:
        node = head_node(traced(net), modules)
        if node.op == "call_module":
            return modules[str(node.target)]
        raise ValueError("the last layer is not a module; name the module that holds its weight: output_layer=...")
    if isinstance(given, str) and given in modules:
        return modules[given]
    if isinstance(given, nn.Module) and given in modules.values():
        return given
    raise ValueError(
        f"output_layer is {given!r}; allowed are the modules of the network: {', '.join(filter(None, modules))}"
    )


def _layers_behind_additions(graph: fx.Graph, modules: dict[str, nn.Module]) -> set[nn.Module]:
    """Return layers whose input comes from an operation on a sum of two branches; exactly one operation between."""
    found = set()
    depends: set[fx.Node] = set()  # on the input; a sum with a parameter has one branch
    for node in graph.nodes:
        if node.op == "placeholder" or (depends & set(node.all_input_nodes) and not asks_shape(node)):
            depends.add(node)
        if node.op != "call_module" or not isinstance(modules[str(node.target)], AFFINE):
            continue
        between = node.all_input_nodes[:1]
        before = between[0].all_input_nodes[:1] if between else []
        if before and before[0].target in ADDITIONS and len(depends & set(before[0].all_input_nodes)) == 2:
            found.add(modules[str(node.target)])
    return found


def add_batchnorm_everywhere(module: nn.Module) -> nn.Module:
    """Return a copy with BatchNorm behind every hidden affine layer that has none yet.

    Args:
        module: Sequential of layers and, at any depth, further Sequentials. The last affine layer makes the logits and
            gets no BatchNorm.

    Returns:
        The copy. Where layers are numbered, they are numbered anew; a new layer behind ``conv`` is called
        ``conv_norm``.

    Raises:
        ValueError: If affine layers are inside a module that is not a Sequential or has a forward of its own, whose
            order cannot be known, or if a convolution is transposed.

    Source: Shi et al., 2021, arXiv:2103.17268.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> [type(layer).__name__ for layer in add_batchnorm_everywhere(net)]
        ['Linear', 'BatchNorm1d', 'ReLU', 'Linear']
    """
    copied = copy.deepcopy(module)
    leaves = list(_leaves(copied, ""))
    affine = [place for place, (_, _, leaf) in enumerate(leaves) if isinstance(leaf, AFFINE)]
    for place in reversed(affine[:-1]):
        parent, name, layer = leaves[place]
        following = next(leaf for _, _, leaf in leaves[place + 1 :] if not isinstance(leaf, BETWEEN))
        if not isinstance(following, _BatchNorm):
            _insert_behind(parent, name, _norm_of(layer))
    return copied


def _leaves(module: nn.Module, path: str) -> Iterator[tuple[nn.Sequential, str, nn.Module]]:
    """Yield parent, name and layer in the order in which they run."""
    if not _in_known_order(module):
        raise ValueError(
            f"module is a {type(module).__name__}; allowed are Sequentials without a forward of their own, since only "
            f"their order is known: build the network with BatchNorm"
        )
    for name, child in module._modules.items():  # named_children() leaves out the second use of a module
        _refuse_transposed(f"{path}{name}", child)
        if _in_known_order(child):
            yield from _leaves(child, f"{path}{name}.")
        elif any(isinstance(part, (*AFFINE, _ConvTransposeNd)) for part in child.modules() if part is not child):
            raise ValueError(
                f"{path}{name} is a {type(child).__name__} with affine layers inside, in an order that is not known; "
                f"allowed are Sequentials of layers: give it BatchNorm where it is built"
            )
        else:
            yield module, name, child


def _in_known_order(module: nn.Module) -> TypeGuard[nn.Sequential]:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _refuse_transposed(name: str, module: nn.Module) -> None:
    if isinstance(module, _ConvTransposeNd):
        raise ValueError(
            f"{name} is a {type(module).__name__}, whose bounds are not known; allowed are convolutions that are not "
            f"transposed: upsample with nn.Upsample in front of one"
        )


def _norm_of(layer: nn.Module) -> nn.Module:
    kinds = {nn.Linear: nn.BatchNorm1d, nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}
    kind = next(norm for cls, norm in kinds.items() if isinstance(layer, cls))
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return kind(weight.shape[0], device=weight.device, dtype=weight.dtype).train(layer.training)


def _insert_behind(parent: nn.Sequential, name: str, norm: nn.Module) -> None:
    children = list(parent._modules.items())
    place = next(i for i, (own, _) in enumerate(children) if own == name) + 1
    if all(own.isdigit() for own, _ in children):
        parent.insert(place, norm)
        return
    new = f"{name}_norm"
    while hasattr(parent, new):
        new += "_"
    for own, _ in children:
        delattr(parent, own)
    for own, child in [*children[:place], (new, norm), *children[place:]]:
        parent.add_module(own, child)
