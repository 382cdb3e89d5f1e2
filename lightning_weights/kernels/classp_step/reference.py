"""Specification of the CLASSP step in plain PyTorch."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import torch
from torch import Tensor


@functools.lru_cache(maxsize=256)
def magnitude_threshold(threshold: float, dtype: torch.dtype) -> float:
    """Return the largest value of ``dtype`` that is at most √τ, so that |g| > it exactly when g² > τ.

    Comparing magnitudes keeps tiny and huge gradients exact, where g² would underflow or overflow.

    Args:
        threshold: τ ≥ 0, on the squared gradient.
        dtype: Floating dtype in which |g| is compared.

    Returns:
        A Python number that ``dtype`` represents exactly.

    Examples:
        >>> magnitude_threshold(0.25, torch.float32)
        0.5
    """
    rounded = torch.tensor(min(math.sqrt(threshold), torch.finfo(dtype).max), dtype=dtype)
    if Fraction(rounded.item()) ** 2 > Fraction(threshold):
        rounded = torch.nextafter(rounded, torch.zeros((), dtype=dtype))
    return rounded.item()


def classp_step_reference(
    param: Tensor,
    grad: Tensor,
    grad_sum: Tensor,
    *,
    lr: float,
    threshold: float,
    power: float,
    eps: float,
    apply_decay: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute one CLASSP step out of place: the specification of the operator.

    With the mask m = 1[g² > τ, g finite], A' = A + m·|g|^p and, with decay, w' = w - m·α·g / (ε + A')^(1/p); without
    decay w' = w - m·α·g.

    Args:
        param: Weights w, any shape and floating dtype.
        grad: Gradient g, of the shape of ``param``.
        grad_sum: Accumulator A ≥ 0, of the shape of ``param``, fp32 or wider. The arithmetic happens in its dtype.
        lr: Learning rate α; a negative value ascends.
        threshold: τ ≥ 0, compared with the squared gradient.
        power: p > 0.
        eps: ε, inside the root.
        apply_decay: Whether the step is divided by the root of the accumulator.

    Returns:
        The new weights, the new accumulator and the boolean mask m.

    Examples:
        >>> w, g, a = torch.zeros(3), torch.tensor([0.5, -2.0, 1e-4]), torch.zeros(3)
        >>> _, total, mask = classp_step_reference(w, g, a, lr=0.1, threshold=1e-6, power=1.0, eps=1e-5)
        >>> total.tolist(), mask.tolist()
        ([0.5, 2.0, 0.0], [True, True, False])
    """
    g = grad.to(grad_sum.dtype)
    accepted = (g.abs() > magnitude_threshold(threshold, g.dtype)) & g.isfinite()
    g = torch.where(accepted, g, 0.0)
    new_sum = grad_sum + g.abs().pow(power)
    step = -lr * g
    if apply_decay:
        step = step / _root(eps + new_sum, power)
    wide = param.to(grad_sum.dtype)
    return torch.where(accepted, wide + step, wide).to(param.dtype), new_sum, accepted


def _root(x: Tensor, power: float) -> Tensor:
    if power == 2.0 and x.device.type == "cpu":
        # PyTorch's own fp32 square root on CPUs is one bit off in a sixth of all numbers; this one rounds correctly.
        return x.double().sqrt().to(x.dtype)
    return x.pow(1.0 / power)
