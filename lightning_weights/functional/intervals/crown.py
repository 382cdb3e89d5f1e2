"""CROWN-IBP: margins by one backward pass of linear relaxations over the boxes of interval propagation."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from lightning_weights.functional.intervals.interpreter import IntervalInterpreter, check_box, rehearse, run_box
from lightning_weights.functional.intervals.interval import Interval, IntervalOutput, PreActivation

SMALLEST = 1e-8  # width of a chord's denominator
NARROWEST = 1e-30  # width of a box whose quotients have finite gradients

_known_sizes: weakref.WeakKeyDictionary[fx.Graph, set[int]] = weakref.WeakKeyDictionary()


def crown_margins(
    net: nn.Module, x: Tensor, lower: Tensor, upper: Tensor, labels: Tensor
) -> tuple[IntervalOutput, Tensor]:
    r"""Bound the margins by CROWN-IBP: hidden boxes by intervals, the margins by linear bounds on the whole network.

    Rows $e_y - e_j$ walk back from the logits to the input. At an unstable ReLU with box $[l, u]$ a positive
    coefficient takes the lower line through 0 of slope 1 if $u \ge -l$, else 0, and a negative one the upper line

    $$\frac{u}{u - l} z - \frac{u l}{u - l}.$$

    Args:
        net: Network with one input whose operations are affine or ReLUs.
        x: Clean batch (N, ...), normalised as the network expects it.
        lower: Lower ends of the boxes.
        upper: Upper ends of the boxes.
        labels: Classes y (N,).

    Returns:
        What interval propagation finds, its own margins included, and the margins (N, K-1) of CROWN-IBP. Either may be
        the tighter one.

    Raises:
        ValueError: As [`interval_forward`][], and for operations that are neither affine nor ReLUs.

    Source: Zhang et al., 2020, arXiv:1906.06316.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3))
        >>> x = torch.rand(4, 2)
        >>> out, margins = crown_margins(net, x, x - 0.1, x + 0.1, torch.tensor([0, 1, 2, 0]))
        >>> margins.shape == out.margin_lower.shape
        True
    """
    walk, out = _run(net, x, lower, upper, labels)
    classes = torch.arange(out.clean.shape[1], device=labels.device)
    others = classes.expand(len(labels), -1)[classes != labels[:, None]].view(len(labels), -1)
    unit = torch.eye(len(classes), dtype=out.clean.dtype, device=labels.device)
    rows = unit[labels][:, None] - unit[others]
    with torch.autocast(x.device.type, enabled=False):
        return out, walk(rows.transpose(0, 1)).T


def crown_fused_loss(
    net: nn.Module, x: Tensor, lower: Tensor, upper: Tensor, labels: Tensor, share: float | Tensor = 1.0
) -> tuple[IntervalOutput, Tensor]:
    r"""Bound the robust cross-entropy of every sample with one row instead of K-1 (loss fusion).

    With bounds $[l_j, u_j]$ of $h_j = z_j - z_y$ from interval propagation, every exponential lies below its chord,

    $$\sum_j e^{h_j} \le 1 + \sum_{j \ne y} e^{l_j} + \frac{e^{u_j} - e^{l_j}}{u_j - l_j} (h_j - l_j),$$

    whose linear part is bounded by one backward pass. The loss is the logarithm of the sum.

    Args:
        net: Network with one input whose operations are affine or ReLUs.
        x: Clean batch (N, ...), normalised as the network expects it.
        lower: Lower ends of the boxes.
        upper: Upper ends of the boxes.
        labels: Classes y (N,).
        share: Weight of this bound of the sum from 0 to 1, as opposed to that of interval propagation.

    Returns:
        What interval propagation finds, and the losses (N,).

    Raises:
        ValueError: As [`crown_margins`][].

    Source: Xu et al., 2020, arXiv:2002.12920 (loss fusion); Zhang et al., 2020, arXiv:1906.06316.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3))
        >>> x, y = torch.rand(4, 2), torch.tensor([0, 1, 2, 0])
        >>> out, losses = crown_fused_loss(net, x, x - 0.1, x + 0.1, y)
        >>> bool((losses >= nn.functional.cross_entropy(out.clean, y, reduction="none") - 1e-6).all())
        True
    """
    walk, out = _run(net, x, lower, upper, labels)
    assert out.margin_lower is not None
    with torch.autocast(x.device.type, enabled=False):
        center = (out.lower + out.upper) / 2
        classes = torch.arange(center.shape[1], device=labels.device)
        others = classes.expand(len(labels), -1)[classes != labels[:, None]].view(len(labels), -1)
        middle = center.gather(1, others) - center.gather(1, labels[:, None])
        high = -out.margin_lower
        low = 2 * middle - high
        largest = high.detach().amax(dim=1, keepdim=True).clamp_min(0)
        at_low, at_high = (low - largest).exp(), (high - largest).exp()
        slope = (at_high - at_low) / (high - low).clamp_min(SMALLEST)
        row = torch.zeros_like(center).scatter(1, others, -slope).scatter(1, labels[:, None], slope.sum(1, True))
        linear_part = -walk(row[None])[0]
        one = (-largest[:, 0]).exp()
        by_crown = one + (at_low - slope * low).sum(1) + linear_part
        by_intervals = one + at_high.sum(1)
        total = share * by_crown + (1 - share) * by_intervals
    return out, total.log() + largest[:, 0]


class _BackwardWalk:
    """Carries linear lower bounds of functions of the logits back to the input box."""

    def __init__(self, runner: IntervalInterpreter) -> None:
        self.runner = runner
        self.boxes = runner.env

    def __call__(self, rows: Tensor) -> Tensor:
        """Return lower bounds (R, N) of the functions with coefficients ``rows`` (R, N, K) on the logits."""
        pending: dict[fx.Node, Tensor] = {self.runner.result: rows}
        bound = rows.new_zeros(())
        for node in reversed(self.runner.graph.nodes):
            coefficients = pending.pop(node, None)
            if coefficients is None:
                continue
            box = self.boxes[node]
            sources = self._sources(node)
            if node.op == "placeholder":
                bound = bound + _dot(coefficients, box.center) - _dot(coefficients.abs(), box.radius)
            elif box.preactivation is not None:
                coefficients, constant = through_relu(coefficients, box.preactivation)
                _collect(pending, sources, [coefficients])
                bound = bound + constant
            else:
                assert box.affine is not None, "check() comes first"
                parts, constant = _through_affine(box.affine, coefficients, [self.boxes[s].center for s in sources])
                _collect(pending, sources, parts)
                bound = bound + constant
        return bound

    def check(self) -> None:
        """Raise a ValueError for operations that are neither affine nor ReLUs, or that mix samples."""
        for node, box in self.boxes.items():
            calls = node.op in ("call_module", "call_function", "call_method") and node.users
            if not calls or not isinstance(box, Interval) or box.preactivation is not None:
                continue
            if box.affine is None:
                raise ValueError(
                    f"node {node.name!r} ({node.op} {node.target}) is neither affine nor a ReLU, so CROWN cannot pass "
                    f"it; use bound='ibp', or register a rule that gives its Interval an `affine` map"
                )
            if _mixes_samples(box, [self.boxes[source] for source in self._sources(node)]):
                raise ValueError(
                    f"node {node.name!r} ({node.op} {node.target}) mixes the samples of the batch or reorders its "
                    f"first dimension, so CROWN cannot pass it; keep samples apart there, or use bound='ibp'"
                )

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        return [source for source in _arguments(node) if isinstance(self.boxes.get(source), Interval)]


def _mixes_samples(box: Interval, sources: list[Interval]) -> bool:
    """Whether a sample's rows reach other samples: rows scaled per sample must come back scaled in the same way."""
    assert box.affine is not None
    size = len(box.center) if box.center.ndim else -1
    if any(source.center.ndim == 0 or len(source.center) != size for source in sources):
        return True
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(box.center.shape, generator=generator, device="cpu").to(box.center) + 1
    scales = 1 + torch.arange(size).to(box.center)
    with torch.no_grad():
        inputs = [source.center.detach() for source in sources]
        parts, _ = _through_affine(box.affine, torch.stack([rows, rows * _per_sample(scales, rows)]), inputs)
    for once, scaled in parts:
        slack = 1e-4 * scaled.abs().amax().item() if scaled.numel() else 0.0
        if not torch.allclose(scaled, once * _per_sample(scales, once), rtol=1e-3, atol=slack):
            return True
    return False


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.ndim - 1))


def through_relu(coefficients: Tensor, box: PreActivation) -> tuple[Tensor, Tensor]:
    """Replace a ReLU by the line below it where a coefficient is positive, and above it where it is negative.

    Args:
        coefficients: Rows (R, N, ...) on the ReLU's output.
        box: Box in front of the ReLU.

    Returns:
        Rows on the ReLU's input, and the constant that is added to the bounds (R, N).
    """
    low, high = box.lower.clamp_max(0), box.upper.clamp_min(0)
    width = high - low
    above = torch.where(width > NARROWEST, high / width.clamp_min(NARROWEST), (high > 0).to(high.dtype))
    below = (high >= -low).to(high.dtype) * (high > 0)
    positive, negative = coefficients.clamp_min(0), coefficients.clamp_max(0)
    return positive * below + negative * above, _dot(negative, -low * above)


def _through_affine(affine: Callable[..., Tensor], rows: Tensor, inputs: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Carry rows through an affine map by its transpose, and its value at 0 into the constant."""
    origin = [torch.zeros_like(z) for z in inputs]
    at_zero, transpose = torch.func.vjp(affine, *origin)  # type: ignore[misc]
    return list(torch.vmap(transpose)(rows)), _dot(rows, at_zero)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # Dynamo cannot follow fx.Interpreter
def _run(
    net: nn.Module, x: Tensor, lower: Tensor, upper: Tensor, labels: Tensor
) -> tuple[_BackwardWalk, IntervalOutput]:
    check_box(x, lower, upper)
    runner = IntervalInterpreter(net, labels, fused=False)
    sizes = _known_sizes.setdefault(runner.graph, set())
    first = rehearse(runner, x) if len(x) not in sizes else None
    if first is not None:
        _BackwardWalk(first).check()
    out = run_box(runner, x, lower, upper)
    walk = _BackwardWalk(runner)
    if len(x) not in sizes:
        if first is None:
            walk.check()
        sizes.add(len(x))
    return walk, out


def _arguments(node: fx.Node) -> list[fx.Node]:
    """Return the nodes among the arguments in order, twice where one is used twice."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def _collect(pending: dict[fx.Node, Tensor], nodes: list[fx.Node], parts: list[Tensor]) -> None:
    for node, part in zip(nodes, parts, strict=True):
        pending[node] = pending[node] + part if node in pending else part


def _dot(rows: Tensor, values: Tensor) -> Tensor:
    return (rows * values).flatten(2).sum(2)
