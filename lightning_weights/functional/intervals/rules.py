"""The rules of interval propagation: what each operation does to a clean value, a centre and a half-width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_weights.functional.intervals.batch_norm import as_affine, batch_norm_map, clean_statistics, per_channel
from lightning_weights.functional.intervals.interval import Interval, PreActivation, box_relu
from lightning_weights.functional.intervals.registry import UnboundableError
from lightning_weights.kernels.interval_affine import interval_affine

Apply = Callable[..., Any]
SOFTPLUS_THRESHOLD = 15.0  # log(1 + exp(-15)) is about 3e-7


def monotone(apply: Apply, x: Interval, *args: Any, **kwargs: Any) -> Interval:
    """Bound an operation that grows with every input, by its values at the ends of the box.

    Args:
        apply: The operation on tensors.
        x: Box of its first argument.
        *args: Its other arguments.
        **kwargs: Its keyword arguments.

    Returns:
        Box of the result.

    Examples:
        >>> box = Interval.between(torch.tensor(0.5), torch.tensor(0.0), torch.tensor(1.0))
        >>> monotone(torch.exp, box).upper.item()
        2.718281...
    """
    # in-place operations may not touch what other nodes still read
    clean = x.clean.clone() if getattr(apply, "inplace", False) or kwargs.get("inplace") else x.clean
    ends = (apply(end, *args, **kwargs) for end in (x.lower, x.upper))
    return Interval.between(apply(clean, *args, **kwargs), *ends)


def positive_linear(apply: Apply, x: Interval, *args: Any, **kwargs: Any) -> Interval:
    """Bound a linear operation whose weights are all at least 0: pooling by averages, reshaping, selecting.

    Args:
        apply: The operation on tensors.
        x: Box of its first argument.
        *args: Its other arguments.
        **kwargs: Its keyword arguments.

    Returns:
        Box of the result.

    Examples:
        >>> box = Interval.between(*torch.tensor([[1.0, 2.0], [0.0, 1.0], [2.0, 5.0]]))
        >>> box = positive_linear(torch.mean, box, 0)
        >>> box.lower.item(), box.upper.item()
        (0.5, 3.5)
    """

    def affine(z: Tensor) -> Tensor:
        return apply(z, *args, **kwargs)  # type: ignore[no-any-return]

    return Interval(affine(x.clean), affine(x.center), affine(x.radius), affine)


def relu(apply: Apply, x: Interval, *args: Any, **kwargs: Any) -> Interval:
    """Bound a ReLU and remember the box in front of it."""
    return Interval(x.clean.relu(), *box_relu(x.center, x.radius), preactivation=PreActivation(x.center, x.radius))


def sloped(apply: Apply, x: Interval, *args: Any, **kwargs: Any) -> Interval:
    """Bound LeakyReLU and ELU, which fall on the negative side if their slope there is negative."""
    slopes = [getattr(apply, name, kwargs.get(name, 0.0)) for name in ("negative_slope", "alpha")]
    if min(slopes) < 0 or any(isinstance(arg, (int, float)) and arg < 0 for arg in args):
        raise UnboundableError("its slope on the negative side is negative, so it is not monotone")
    return monotone(apply, x, *args, **kwargs)


def softplus(apply: Apply, x: Interval, beta: float = 1.0, threshold: float = 20.0) -> Interval:
    """Bound Softplus, which PyTorch replaces by the identity above a threshold."""
    settings = () if isinstance(apply, nn.Module) else (beta, threshold)
    if isinstance(apply, nn.Softplus):
        beta, threshold = apply.beta, apply.threshold
    if beta <= 0 or threshold < SOFTPLUS_THRESHOLD:
        raise UnboundableError(
            f"beta is {beta} and threshold {threshold}; it is monotone up to rounding if beta > 0 and threshold >= "
            f"{SOFTPLUS_THRESHOLD}, and drops at lower thresholds"
        )
    return monotone(apply, x, *settings)


def fixed(apply: Apply, x: Interval, *args: Any, **kwargs: Any) -> Interval:
    """Pass on the box of an operation that changes nothing."""
    return Interval(x.clean, x.center, x.radius, lambda z: z)


def dropout(apply: Apply, x: Interval, *args: Any, **kwargs: Any) -> Interval:
    """Bound dropout: one mask for the clean value and the box, none in evaluation mode."""
    if isinstance(apply, nn.Module):
        mask = apply(torch.ones_like(x.clean)) if apply.training else None
    else:
        mask = apply(torch.ones_like(x.clean), *args, **kwargs)
    if mask is None:
        return fixed(apply, x)
    return Interval(x.clean * mask, x.center * mask, x.radius * mask, lambda z: z * mask)


def linear_layer(apply: nn.Linear, x: Interval) -> Interval:
    """Bound a linear layer; its weight is read once, since a parametrization may be random."""
    return linear(F.linear, x, apply.weight, apply.bias)


def linear(apply: Apply, x: Interval, weight: Tensor, bias: Tensor | None = None) -> Interval:
    """Bound a product with a weight: c' = Wc + b, r' = |W| r."""
    out = interval_affine(x.center, x.radius, weight, bias)
    return Interval(F.linear(x.clean, weight, bias), out.center, out.radius, lambda z: F.linear(z, weight, bias))


def conv_layer(apply: nn.Conv2d, x: Interval) -> Interval:
    """Bound a convolution layer of any number of dimensions and any way of padding."""
    return conv(apply._conv_forward, x, apply.weight, apply.bias)


def conv(apply: Apply, x: Interval, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Interval:
    """Bound a convolution: c' = W * c + b, r' = |W| * r."""

    def affine(z: Tensor) -> Tensor:
        return apply(z, weight, bias, *args, **kwargs)  # type: ignore[no-any-return]

    return Interval(affine(x.clean), affine(x.center), apply(x.radius, weight.abs(), None, *args, **kwargs), affine)


def batch_norm_layer(apply: _BatchNorm, x: Interval) -> Interval:
    """Bound BatchNorm with the statistics of the clean pass."""
    return _scaled_and_shifted(x, *batch_norm_map(apply, x.clean))


def batch_norm(
    apply: Apply,
    x: Interval,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Interval:
    """Bound the function form of BatchNorm."""
    if training or running_mean is None or running_var is None:
        statistics = clean_statistics(x.clean)
    else:
        statistics = running_mean.clone(), running_var.clone()

    def normalize(z: Tensor) -> Tensor:
        return apply(z, running_mean, running_var, weight, bias, training, momentum, eps)  # type: ignore[no-any-return]

    return _scaled_and_shifted(x, *as_affine(normalize, x.clean, statistics, weight, bias, eps))


def _scaled_and_shifted(x: Interval, clean: Tensor, scale: Tensor, shift: Tensor) -> Interval:
    scale, shift = per_channel(scale, clean), per_channel(shift, clean)

    def affine(z: Tensor) -> Tensor:
        return torch.addcmul(shift, z, scale)

    return Interval(clean, affine(x.center), x.radius * scale.abs(), affine)


def plus_or_minus(apply: Apply, a: Any, b: Any, *, alpha: float = 1) -> Interval:
    """Bound sums and differences of intervals and constants: centres as written, half-widths added."""
    kwargs = {} if alpha == 1 else {"alpha": alpha}
    parts = (a, b)
    which = [isinstance(part, Interval) for part in parts]

    def affine(*tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        return apply(*(next(rest) if is_box else part for part, is_box in zip(parts, which, strict=True)), **kwargs)  # type: ignore[no-any-return]

    boxes = [part for part in parts if isinstance(part, Interval)]
    clean, center = affine(*(box.clean for box in boxes)), affine(*(box.center for box in boxes))
    radius = a.radius if isinstance(a, Interval) else b.radius * abs(alpha)
    radius = radius + b.radius * abs(alpha) if len(boxes) == 2 else radius.expand_as(center)
    return Interval(clean, center, radius, affine)


def product(apply: Apply, a: Any, b: Any) -> Interval:
    """Bound products with constants, also of matrices."""
    if isinstance(a, Interval) and isinstance(b, Interval):
        raise UnboundableError("both factors depend on the input, and only products with constants are affine")
    if isinstance(a, Interval):
        return Interval(apply(a.clean, b), apply(a.center, b), apply(a.radius, abs(b)), lambda z: apply(z, b))
    return Interval(apply(a, b.clean), apply(a, b.center), apply(abs(a), b.radius), lambda z: apply(a, z))


def quotient(apply: Apply, a: Any, b: Any) -> Interval:
    """Bound quotients by constants."""
    if isinstance(b, Interval):
        raise UnboundableError("the divisor depends on the input, and only quotients by constants are affine")
    return product(apply, a, b)


def negative(apply: Apply, x: Interval) -> Interval:
    """Bound a change of sign."""
    return Interval(apply(x.clean), apply(x.center), x.radius, apply)


def concatenate(apply: Apply, pieces: Sequence[Any], *args: Any, **kwargs: Any) -> Interval:
    """Bound concatenation and stacking of intervals and constants."""

    def affine(*tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        return apply([next(rest) if isinstance(p, Interval) else p for p in pieces], *args, **kwargs)  # type: ignore[no-any-return]

    boxes = [piece for piece in pieces if isinstance(piece, Interval)]
    clean, center = affine(*(box.clean for box in boxes)), affine(*(box.center for box in boxes))
    radii = [piece.radius if isinstance(piece, Interval) else torch.zeros_like(piece) for piece in pieces]
    return Interval(clean, center, apply(radii, *args, **kwargs), affine)
