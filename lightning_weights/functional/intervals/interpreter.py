"""Interval propagation through a network, node by node of its graph."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lightning_weights.errors import ShardedParameterError
from lightning_weights.functional.intervals.chains import find_chains, run_chain
from lightning_weights.functional.intervals.interval import Interval, IntervalOutput, PreActivation
from lightning_weights.functional.intervals.registry import UnboundableError, find_rule
from lightning_weights.functional.intervals.rules import linear
from lightning_weights.functional.intervals.tracing import (
    asks_shape,
    head_node,
    missing_rule,
    operation,
    output_node,
    share_graphs,
    traced,
    without_side_effects,
)
from lightning_weights.kernels.interval_affine import interval_margins

_rehearsed: weakref.WeakSet[fx.Graph] = weakref.WeakSet()


class IntervalInterpreter(fx.Interpreter):
    """Run a network on a clean batch and on the boxes around it at once.

    Every operation that depends on the input is replaced by its rule (see [`register_interval_rule`][]); what does not
    depend on it runs as it is. The graph is traced once and kept as long as the network.

    Args:
        net: Network with one input, in train or evaluation mode.
        labels: Classes (N,) whose margins are bounded in the last linear layer. ``None``: no margins.
        fused: Whether affine layer, BatchNorm and ReLU run as one where they follow each other. CROWN needs the
            intervals between them.

    Raises:
        ValueError: If the network cannot be traced, has an operation without a rule, or, with labels, does not end in a
            linear layer.
        ShardedParameterError: If parameters are sharded.

    Source: Gowal et al., 2018, arXiv:1810.12715; Shi et al., 2021, arXiv:2103.17268.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> x = torch.rand(4, 2)
        >>> runner = IntervalInterpreter(net)
        >>> box = runner.run(Interval.between(x, x - 0.1, x + 0.1))
        >>> bool((box.lower <= net(x)).all()), len(runner.preactivations)
        (True, 1)
    """

    def __init__(self, net: nn.Module, labels: Tensor | None = None, fused: bool = True) -> None:
        if any(hasattr(parameter, "placements") for parameter in net.parameters()):
            raise ShardedParameterError(
                "interval propagation reads whole weights outside of forward, but this network's are sharded (FSDP2); "
                "use DDP, or gather the weights first"
            )
        net = getattr(net, "_orig_mod", net)  # what torch.compile wraps
        graph = traced(net)
        super().__init__(net, garbage_collect_values=fused, graph=graph)
        self.labels = labels
        self.head = None if labels is None else head_node(graph, self.submodules)
        self.result = output_node(graph)
        self.preactivations: list[PreActivation] = []
        self.margin_lower: Tensor | None = None
        if labels is not None and self.head is not None:
            self._check_labels(labels, self.head)
        self._chains = find_chains(graph, self.submodules) if fused else {}
        self._inside = {node for chain in self._chains.values() for node in chain[:-1]}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node: by its rule if it depends on the input, as it is otherwise."""
        if "constant" in n.meta:
            return n.meta["constant"]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op in ("placeholder", "output", "get_attr") or not _holds_interval((args, kwargs)):
            return super().run_node(n)
        if n in self._inside:
            return args[0]
        if n in self._chains:
            result = run_chain([operation(node, self.submodules) for node in self._chains[n]], args[0])
        else:
            result = self._apply_rule(n, args, kwargs)
        if isinstance(result, Interval) and result.preactivation is not None:
            self.preactivations.append(result.preactivation)
        return result

    def _apply_rule(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        op = operation(node, self.submodules)
        apply = without_side_effects(op)
        if asks_shape(node):
            return apply(args[0].clean, *args[1:], **kwargs)
        rule = find_rule(op)
        if rule is None:
            raise missing_rule(node, op)
        try:
            return self._run_head(*args, **kwargs) if node is self.head else rule(apply, *args, **kwargs)
        except UnboundableError as error:
            raise ValueError(f"node {node.name!r} ({node.op} {node.target}) has no interval rule: {error}") from error
        except TypeError as error:
            raise ValueError(
                f"node {node.name!r} ({node.op} {node.target}) passes arguments that its rule does not take ({error}); "
                f"pass the tensor by position, or register a rule that takes them"
            ) from error

    def _check_labels(self, labels: Tensor, head: fx.Node) -> None:
        """Refuse labels without an output before anything runs."""
        if head.op == "call_module":
            outputs = self.submodules[str(head.target)].out_features
        elif len(head.args) > 1 and isinstance(head.args[1], fx.Node) and head.args[1].op == "get_attr":
            outputs = len(self.run_node(head.args[1]))
        else:  # a weight that is computed; interval_margins checks
            return
        if labels.is_floating_point() or labels.ndim != 1:
            raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; allowed are integers (N,)")
        if labels.numel() and not (labels.min() >= 0 and labels.max() < outputs):
            raise ValueError(
                f"labels go from {int(labels.min())} to {int(labels.max())}; allowed are 0 to {outputs - 1}"
            )

    def _run_head(self, x: Interval, *args: Any, **kwargs: Any) -> Interval:
        """Run the last linear layer, and bound the margins with one reading of its weight."""
        assert self.head is not None
        assert self.labels is not None
        if self.head.op == "call_module":
            layer = self.submodules[str(self.head.target)]
            args = (layer.weight, layer.bias)
        box = linear(F.linear, x, *args, **kwargs)
        weight, bias = _weight_and_bias(*args, **kwargs)
        self.margin_lower = interval_margins(x.center, x.radius, weight, bias, self.labels)
        return box


@torch.compiler.disable  # type: ignore[untyped-decorator]  # Dynamo cannot follow fx.Interpreter
def interval_forward(
    net: nn.Module, x: Tensor, lower: Tensor, upper: Tensor, spec: Tensor | None = None
) -> IntervalOutput:
    """Propagate boxes through a network together with the clean batch inside them.

    In training mode BatchNorm takes its statistics from the clean batch, and its running statistics move once, as in
    ``net(x)``. Autocast is off inside, and torch.compile leaves this call as it is.

    Args:
        net: Network with one input, in train or evaluation mode.
        x: Clean batch (N, ...), normalised as the network expects it.
        lower: Lower ends of the boxes, shaped like ``x``.
        upper: Upper ends of the boxes.
        spec: Labels y (N,). With them the rows w_y - w_j are merged into the last linear layer, which bounds margins
            more tightly than bounds of logits do.

    Returns:
        Clean logits, boxes in front of the ReLUs, bounds of the logits, and with ``spec`` lower bounds of the margins.

    Raises:
        ValueError: If the tensors do not fit or are in half precision, or if the network is one of those that
            [`IntervalInterpreter`][] refuses.
        ShardedParameterError: If parameters are sharded.

    Source: Shi et al., 2021, arXiv:2103.17268.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> x = torch.rand(4, 2)
        >>> out = interval_forward(net, x, x - 0.1, x + 0.1, spec=torch.tensor([0, 1, 1, 0]))
        >>> out.margin_lower.shape, len(out.preactivations)
        (torch.Size([4, 1]), 1)
    """
    check_box(x, lower, upper)
    runner = IntervalInterpreter(net, spec)
    return run_box(runner, x, lower, upper)


def check_box(x: Tensor, lower: Tensor, upper: Tensor) -> None:
    """Raise a ValueError if the tensors differ in shape or are in half precision."""
    if not x.shape == lower.shape == upper.shape:
        raise ValueError(
            f"x, lower and upper have shapes {tuple(x.shape)}, {tuple(lower.shape)} and {tuple(upper.shape)}; allowed "
            f"are equal ones"
        )
    for name, tensor in (("x", x), ("lower", lower), ("upper", upper)):
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} is in {tensor.dtype}, in which bounds would prove nothing; allowed are float32 and float64: "
                f"call .float()"
            )


def run_box(runner: IntervalInterpreter, x: Tensor, lower: Tensor, upper: Tensor) -> IntervalOutput:
    """Run an interpreter with autocast off and collect what it found."""
    if runner.graph not in _rehearsed:
        rehearse(runner, x)
        _rehearsed.add(runner.graph)
    with torch.autocast(x.device.type, enabled=False):
        if x.ndim == 4 and x.device.type == "cpu":  # where convolutions are faster with channels last
            lower, upper = (z.contiguous(memory_format=torch.channels_last) for z in (lower, upper))
        box = runner.run(Interval.between(x, lower, upper))
    if not isinstance(box, Interval):
        raise ValueError("the network's output does not depend on its input")
    return IntervalOutput(box.clean, runner.preactivations, box.lower, box.upper, runner.margin_lower)


def rehearse(runner: IntervalInterpreter, x: Tensor) -> IntervalInterpreter | None:
    """Run a copy of the network as it is and by its rules, and compare; random numbers are drawn as if it had not run.

    Args:
        runner: Interpreter of the network.
        x: Clean batch.

    Returns:
        The interpreter of the copy, with the values of all nodes. None: the network cannot be copied, or its
        statistics would take a collective call of all processes, so nothing was compared.

    Raises:
        ValueError: If the values differ.
    """
    net = runner.module
    if any(isinstance(module, nn.SyncBatchNorm) and module.training for module in net.modules()):
        return None
    try:
        plain, copied = copy.deepcopy(net), copy.deepcopy(net)
    except Exception:  # whatever a network holds: tensors inside an autograd graph, locks, generators
        return None
    share_graphs(net, copied)
    other = IntervalInterpreter(copied, fused=False)
    kind = x.device.type
    generators = {"devices": [] if kind == "cpu" else [x.device], "device_type": kind}
    runs: tuple[Callable[[Tensor], Any], ...] = (plain, lambda z: other.run(Interval.between(z, z, z)))
    values = []
    for run in runs:
        with torch.no_grad(), torch.autocast(kind, enabled=False), torch.random.fork_rng(**generators):
            values.append(run(x.clone()))
    expected, found = values
    if isinstance(found, Interval) and not _same(found.clean, expected):
        raise ValueError(
            f"{type(net).__name__} computes something else than its traced graph. Causes are operations that the trace "
            f"cannot see: in-place operations such as += on a tensor with a second name, attributes that change, "
            f"random constants, or a rule that does not compute its operation's clean value"
        )
    return other


def _same(found: Tensor, expected: Tensor) -> bool:
    size = expected.abs().nan_to_num().max().item() if expected.numel() else 0.0
    return found.shape == expected.shape and torch.allclose(
        found, expected, rtol=1e-3, atol=1e-4 * size, equal_nan=True
    )


def _holds_interval(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_interval, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_interval, value))
    return isinstance(value, Interval)


def _weight_and_bias(weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    return weight, bias
