"""Affine layer, BatchNorm and ReLU in one go, where nothing else reads what is between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_weights.functional.intervals.batch_norm import batch_norm_map
from lightning_weights.functional.intervals.interval import Interval, PreActivation
from lightning_weights.functional.intervals.registry import Rule, find_rule
from lightning_weights.functional.intervals.rules import batch_norm_layer, conv_layer, linear_layer, relu
from lightning_weights.functional.intervals.tracing import operation
from lightning_weights.kernels.interval_affine import interval_affine


def find_chains(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[fx.Node, list[fx.Node]]:
    """Find affine layers with BatchNorm, ReLU or both directly behind them.

    Args:
        graph: Graph of the network.
        modules: Its modules by name.

    Returns:
        For the last node of each chain its nodes from first to last. A convolution's chain ends with BatchNorm.
    """
    found = {}
    for node in graph.nodes:
        rule = _rule(node, modules)
        if rule not in (linear_layer, conv_layer):
            continue
        chain = [node]
        for follower in (batch_norm_layer, relu) if rule is linear_layer else (batch_norm_layer,):
            users = list(chain[-1].users)
            if len(users) == 1 and _rule(users[0], modules) is follower:
                chain.append(users[0])
        if len(chain) > 1:
            found[chain[-1]] = chain
    return found


def run_chain(ops: Sequence[object], x: Interval) -> Interval:
    """Propagate a box through an affine layer and what follows it.

    Args:
        ops: The layer, then BatchNorm, ReLU or both.
        x: Box in front of the layer.
    """
    layer = ops[0]
    norm = next((op for op in ops if isinstance(op, _BatchNorm)), None)
    if not isinstance(layer, nn.Linear):
        return _convolve(cast("nn.Conv2d", layer), cast("_BatchNorm", norm), x)
    if norm is not None and x.clean.ndim > 2:  # BatchNorm's channels are not the layer's outputs
        x = batch_norm_layer(norm, linear_layer(layer, x))
        return x if ops[-1] is norm else relu(F.relu, x)
    weight, bias = layer.weight, layer.bias
    clean, scale, shift = F.linear(x.clean, weight, bias), None, None
    if norm is not None:
        clean, scale, shift = batch_norm_map(norm, clean)
    rectified = ops[-1] not in (layer, norm)
    out = interval_affine(x.center, x.radius, weight, bias, scale=scale, shift=shift, relu=rectified)
    if not rectified:
        return Interval(clean, out.center, out.radius)
    return Interval(
        clean.relu(),
        out.center,
        out.radius,
        preactivation=PreActivation(out.pre_center, out.pre_radius, out.sums),
    )


def _convolve(layer: nn.Conv2d, norm: _BatchNorm, x: Interval) -> Interval:
    """Fold BatchNorm's factors into the weight, which is smaller than the activations."""
    weight, bias = layer.weight, layer.bias
    clean, scale, shift = batch_norm_map(norm, layer._conv_forward(x.clean, weight, bias))
    folded = weight * scale.view(-1, *(1,) * (weight.ndim - 1))
    shift = shift if bias is None else torch.addcmul(shift, bias, scale)
    center = layer._conv_forward(x.center, folded, shift)
    return Interval(clean, center, layer._conv_forward(x.radius, folded.abs(), None))


def _rule(node: fx.Node, modules: dict[str, nn.Module]) -> Rule | None:
    calls = node.op in ("call_module", "call_function", "call_method") and node.args
    return find_rule(operation(node, modules)) if calls else None
