"""Graphs of networks: traced once per structure, and checked before anything runs."""

from __future__ import annotations

import types
import weakref
from collections.abc import Hashable
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from lightning_weights.functional.intervals import rules
from lightning_weights.functional.intervals.aliases import refuse_overwritten_reads
from lightning_weights.functional.intervals.registry import find_rule

Traced = tuple[Hashable, fx.Graph]
_graphs: weakref.WeakKeyDictionary[nn.Module, dict[bool, Traced]] = weakref.WeakKeyDictionary()
SHAPE_METHODS = ("size", "dim", "ndimension", "numel", "stride")
SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")


class _Tracer(fx.Tracer):
    """Traces into modules without a rule of their own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return find_rule(m) is not None or super().is_leaf_module(m, module_qualified_name)


def traced(net: nn.Module) -> fx.Graph:
    """Return the graph of a network, one for training and one for evaluation.

    It is traced again if layers are exchanged or change between train and eval, or if a number, truth value, string,
    tuple, list or function among the public attributes of a module that is traced into changes.

    Args:
        net: Network with one input.

    Raises:
        ValueError: If the network cannot be traced, has hooks, or has an operation without a rule.
    """
    _refuse_hooks(net)
    structure = _structure(net)
    known = _graphs.setdefault(net, {})
    if net.training not in known or known[net.training][0] != structure:
        graph = _trace(net)
        _check(graph, dict(net.named_modules()))
        known[net.training] = structure, graph
    return known[net.training][1]


def share_graphs(net: nn.Module, copied: nn.Module) -> None:
    """Let a copy of a network run by the graphs of the original."""
    _graphs[copied] = dict(_graphs[net])


def _trace(net: nn.Module) -> fx.Graph:
    before = set(vars(net))
    try:
        graph = _Tracer().trace(net)
    except Exception as error:
        raise ValueError(
            f"{type(net).__name__} cannot be traced by torch.fx ({error}); allowed are networks whose forward does "
            f"not branch on values, without a wrapper around them. Move such code into a module of its own and "
            f"register a rule for its class: lightning_weights.functional.intervals.register_interval_rule"
        ) from error
    finally:
        added = {name: vars(net)[name] for name in set(vars(net)) - before if name.startswith("_tensor_constant")}
        for name in added:  # torch.fx keeps tensors that forward makes on the network itself
            delattr(net, name)
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in added:
            node.meta["constant"] = added[node.target]
    return graph


def _structure(net: nn.Module) -> Hashable:
    # functions such as F.dropout(x, training=self.training) are traced with the mode of that moment
    return tuple(
        (name, type(m), m.training, getattr(m, "inplace", None), rule, None if rule else _attributes(m))
        for name, m in net.named_modules()
        for rule in (find_rule(m),)
    )


def _attributes(module: nn.Module) -> Hashable:
    """Return the attributes that steer a forward pass and become constants of its graph."""
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return tuple((name, _frozen(value)) for name, value in sorted(public.items()))


def _frozen(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(map(_frozen, value))
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
        return weakref.ref(value)  # a closure may hold the network, which must not be kept alive from here
    return value if isinstance(value, (int, float, complex, str, Enum, torch.dtype, torch.device)) else type(value)


def _refuse_hooks(net: nn.Module) -> None:
    for name, module in net.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"module {name!r} ({type(module).__name__}) has forward hooks or forward pre-hooks, which interval "
                f"propagation does not call; remove them. Instead of torch.nn.utils.weight_norm and spectral_norm use "
                f"those of torch.nn.utils.parametrizations, and make pruning permanent by torch.nn.utils.prune.remove"
            )


def operation(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    """Return what rules are registered for: the module, the function or the method's name."""
    return modules[str(node.target)] if node.op == "call_module" else node.target


def asks_shape(node: fx.Node) -> bool:
    """Whether a node asks for shape, type or device, which are the same for all values in a box."""
    if node.op == "call_method":
        return node.target in SHAPE_METHODS
    return node.target is getattr and node.args[1] in SHAPE_ATTRIBUTES


def without_side_effects(op: Any) -> Any:
    """Return an operation as a function on tensors; methods in place become those out of place.

    ``view`` becomes ``reshape``, since boxes may lie in memory in another order than the clean batch.
    """
    if isinstance(op, str):
        name = "reshape" if op == "view" else op.removesuffix("_")
        return lambda tensor, *args, **kwargs: getattr(tensor, name)(*args, **kwargs)
    return op


def missing_rule(node: fx.Node, op: Any) -> ValueError:
    """Return the error that tells how to register the rule that a node needs."""
    name = type(op).__name__ if isinstance(op, nn.Module) else getattr(op, "__name__", op)
    register_as = {"call_module": name, "call_method": repr(name)}.get(node.op, f"the function {name}")
    return ValueError(
        f"node {node.name!r} ({node.op} {name}) has no interval rule. Teach it one with "
        f"lightning_weights.functional.intervals.register_interval_rule({register_as}, rule), where rule(apply, x, "
        f"...) gets and returns an Interval; if it grows with its input, the rule `monotone` will do"
    )


def _check(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Raise for operations on intervals that have no rule or would overwrite what is read later."""
    depends: dict[fx.Node, Any] = {}  # in the order of the graph
    for node in graph.nodes:
        if node.op == "placeholder":
            depends[node] = None
        calls = node.op in ("call_module", "call_function", "call_method")
        if not calls or depends.keys().isdisjoint(node.all_input_nodes) or asks_shape(node):
            continue
        depends[node] = operation(node, modules)
        if find_rule(depends[node]) is None:
            raise missing_rule(node, depends[node])
    refuse_overwritten_reads(graph, depends)


def output_node(graph: fx.Graph) -> fx.Node:
    """Return the node whose value the network returns.

    Raises:
        ValueError: If the network returns anything but one tensor.
    """
    result = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    if not isinstance(result, fx.Node):
        raise ValueError(f"the network returns {type(result).__name__}; allowed is one tensor of logits")
    return result


def head_node(graph: fx.Graph, modules: dict[str, nn.Module]) -> fx.Node:
    """Return the node of the last linear layer, behind which only identities may come.

    Raises:
        ValueError: If the network does not end so, or if its last layer has a rule of the user's.
    """
    node = output_node(graph)
    while node.op == "call_module" and find_rule(operation(node, modules)) is rules.fixed:
        node = node.all_input_nodes[0]
    rule = find_rule(operation(node, modules)) if node.op.startswith("call_") else None
    if rule is rules.linear_layer or (node.target is F.linear and rule is rules.linear):
        return node
    raise ValueError(
        f"the network ends in {node.target!r} ({node.op}); margins are merged into a last nn.Linear or F.linear with "
        f"the rule that these have from the start, so let it end in one"
    )
