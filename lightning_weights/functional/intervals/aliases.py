"""In-place operations whose operand is read later under another name."""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

from torch import fx, nn

from lightning_weights.functional.intervals import rules
from lightning_weights.functional.intervals.registry import find_rule
from lightning_weights.functional.intervals.standard_rules import VIEWS


def refuse_overwritten_reads(graph: fx.Graph, operations: dict[fx.Node, Any]) -> None:
    """Raise a ValueError where an in-place operation changes memory that an earlier result shares and that is read on.

    Args:
        graph: Graph of the network.
        operations: The operations of all nodes that depend on the input, in the graph's order; None for the input.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    shared: dict[fx.Node, list[fx.Node]] = {}
    for node, op in operations.items():
        shared[node] = [node]
        sources = [source for source in node.all_input_nodes if source in operations]
        if op is None or not sources:
            continue
        in_place = _in_place(node, op)
        for alias in shared[sources[0]] if in_place else ():
            if any(order[user] > order[node] for user in alias.users):
                raise ValueError(
                    f"node {node.name!r} works in place on {sources[0].name!r}, which is read later as {alias.name!r}; "
                    f"use inplace=False there"
                )
        if in_place or _may_share_memory(op):
            together = [node, *(alias for source in sources[: 1 if in_place else None] for alias in shared[source])]
            shared.update(dict.fromkeys(together, together))


def _in_place(node: fx.Node, op: Any) -> bool:
    if isinstance(op, nn.Module):
        return bool(getattr(op, "inplace", False))
    name = op if isinstance(op, str) else getattr(op, "__name__", "")
    arguments = node.kwargs
    if isinstance(op, FunctionType):  # F.relu(x, True) says it by position
        arguments = inspect.signature(op).bind_partial(*node.args, **node.kwargs).arguments
    return bool(name.endswith("_") or arguments.get("inplace"))


def _may_share_memory(op: Any) -> bool:
    """Whether a result may be a view of its argument, which has to be assumed of rules from elsewhere."""
    rule = find_rule(op)
    if rule in (rules.fixed, rules.dropout) or getattr(rule, "__module__", None) != rules.__name__:
        return True
    return isinstance(op, VIEW_MODULES) if isinstance(op, nn.Module) else op in VIEWS


VIEW_MODULES = tuple(view for view in VIEWS if isinstance(view, type))
