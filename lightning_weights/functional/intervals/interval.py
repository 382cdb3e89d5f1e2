"""What is known about an activation: its value on the clean input, and a box around all values it can take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_relu_backward = torch.ops.aten.threshold_backward.grad_input


class _BoxReLU(torch.autograd.Function):
    """ReLU of both ends of a box; large results are written in place, since fresh memory is the dearest part."""

    @staticmethod
    def forward(center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        upper = (center + radius).clamp_min_(0)
        middle = (center - radius).clamp_min_(0).lerp_(upper, 0.5)
        return middle, upper.sub_(middle)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_center: Tensor, grad_radius: Tensor) -> tuple[Tensor, Tensor]:
        center, radius = ctx.saved_tensors
        at_upper, at_lower = grad_center + grad_radius, grad_center - grad_radius
        end = center + radius
        _relu_backward(at_upper, end, 0, grad_input=at_upper)
        _relu_backward(at_lower, torch.sub(center, radius, out=end), 0, grad_input=at_lower)
        middle = torch.lerp(at_lower, at_upper, 0.5, out=end)
        return middle, at_upper.sub_(middle)


class _BoxSums(torch.autograd.Function):
    """Sums over a box, whose gradients are written in one go instead of one tensor per sum."""

    @staticmethod
    def forward(center: Tensor, radius: Tensor) -> Tensor:
        chosen = torch.empty_like(center)
        counts, totals, squares = [], [], []
        for choose in (_active, _inactive):
            counts.append(choose(center, radius, chosen).sum())
            totals.append(chosen.mul_(center).sum())
            squares.append(chosen.square_().sum())
        return torch.stack([radius.sum(), *counts, *totals, center.sum(), *squares])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        center, radius = ctx.saved_tensors
        widths, _, _, active, inactive, total, active_squares, inactive_squares = grad.unbind()
        chosen = _active(center, radius, torch.empty_like(center))
        grad_center = torch.addcmul(total, chosen, active).addcmul_(chosen.mul_(center), 2 * active_squares)
        grad_center.addcmul_(_inactive(center, radius, chosen), inactive)
        return grad_center.addcmul_(chosen.mul_(center), 2 * inactive_squares), widths.expand_as(radius)


def _active(center: Tensor, radius: Tensor, out: Tensor) -> Tensor:
    """Write 1 where the lower end is above 0; numbers instead of truth values can be multiplied in place."""
    return torch.gt(center, radius, out=out)


def _inactive(center: Tensor, radius: Tensor, out: Tensor) -> Tensor:
    """Write 1 where the upper end is below 0."""
    return torch.lt(torch.add(center, radius, out=out), 0, out=out)


def box_relu(center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return centre and half-width of [relu(c - r), relu(c + r)]."""
    return _BoxReLU.apply(center, radius)  # type: ignore[no-untyped-call, no-any-return]


@dataclass
class PreActivation:
    """Box in front of a ReLU.

    Args:
        center: Centres c.
        radius: Half-widths r.
        known_sums: The sums, if a fused operator has computed them already.

    Examples:
        >>> PreActivation(torch.tensor([2.0, -1.0, 0.0]), torch.tensor([0.5, 0.5, 0.5])).sums.tolist()
        [1.5, 1.0, 1.0, 2.0, -1.0, 1.0, 4.0, 1.0]
    """

    center: Tensor
    radius: Tensor
    known_sums: Tensor | None = None

    @cached_property
    def sums(self) -> Tensor:
        """Σ r, |A|, |I|, Σ_A c, Σ_I c, Σ c, Σ_A c², Σ_I c² over batch and units, A: c > r and I: c < -r.

        Differentiable in c and r; the sets are constants.
        """
        if self.known_sums is not None:
            return self.known_sums
        return _BoxSums.apply(self.center, self.radius)  # type: ignore[no-untyped-call, no-any-return]

    @property
    def lower(self) -> Tensor:
        """Lower bounds, c - r."""
        return self.center - self.radius

    @property
    def upper(self) -> Tensor:
        """Upper bounds, c + r."""
        return self.center + self.radius


@dataclass
class Interval:
    """An activation: its value on the clean input and a box around all values it can take.

    Args:
        clean: Activation on the clean input.
        center: Centre of the box.
        radius: Half-width of the box, at least 0.
        affine: For affine operations, the map from the intervals' tensors, in the order of the arguments, to the
            result; CROWN walks back through it. ``None``: the operation is not affine.
        preactivation: For ReLUs, the box in front of it.

    Examples:
        >>> box = Interval.between(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(4.0))
        >>> box.center.item(), box.radius.item(), box.upper.item()
        (2.0, 2.0, 4.0)
    """

    clean: Tensor
    center: Tensor
    radius: Tensor
    affine: Callable[..., Tensor] | None = None
    preactivation: PreActivation | None = None

    @classmethod
    def between(cls, clean: Tensor, lower: Tensor, upper: Tensor) -> Interval:
        """Make the box with these ends.

        Args:
            clean: Activation on the clean input.
            lower: Lower ends.
            upper: Upper ends.
        """
        return cls(clean, (lower + upper) / 2, (upper - lower) / 2)

    @property
    def lower(self) -> Tensor:
        """Lower ends of the box."""
        return self.center - self.radius

    @property
    def upper(self) -> Tensor:
        """Upper ends of the box."""
        return self.center + self.radius


@dataclass
class IntervalOutput:
    """What interval propagation finds out about a network.

    Args:
        clean: Logits on the clean input (N, K).
        preactivations: Boxes in front of the ReLUs, in the order in which they run.
        lower: Lower bounds of the logits (N, K).
        upper: Upper bounds of the logits (N, K).
        margin_lower: With labels, lower bounds of the margins z_y - z_j (N, K-1), j ≠ y ascending.

    Examples:
        >>> z = torch.zeros(1, 2)
        >>> IntervalOutput(clean=z, preactivations=[], lower=z - 1, upper=z + 1).margin_lower is None
        True
    """

    clean: Tensor
    preactivations: Sequence[PreActivation]
    lower: Tensor
    upper: Tensor
    margin_lower: Tensor | None = None
