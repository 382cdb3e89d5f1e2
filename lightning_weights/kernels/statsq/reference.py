"""Specification of the statistics-based weight quantizer and of what is observed along with it, in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TOP = 1.0 - 1e-6  # of weights over their scale: one more would be a code outside the grid


class StatsQuantized(NamedTuple):
    """Rows of quantized weights.

    Attributes:
        values: Ŵ = (k + 1/2)·s/n of the weight's shape and dtype.
        codes: k from -n to n-1, int8.
        step: s/n of every row, in fp32 or wider.
        confidence: Distance of every weight to the nearest threshold between two codes, in steps, as wide.

    Examples:
        >>> statsq_reference(torch.tensor([[-0.2, 0.6]]), bits=2).codes
        tensor([[-1,  1]], dtype=torch.int8)
    """

    values: Tensor
    codes: Tensor
    step: Tensor
    confidence: Tensor


def statsq_reference(weight: Tensor, bits: int) -> StatsQuantized:
    r"""Quantize rows on a mid-rise grid whose scale is twice their mean absolute weight, operation by operation.

    $$s = 2 \operatorname{mean} |W|, \quad u = n \operatorname{clamp}(W / s, -1, 1 - 10^{-6}) - \tfrac12, \quad
    k = \lfloor u \rceil, \quad \hat W = \frac{s}{n} (k + \tfrac12), \quad n = 2^{b-1}$$

    Args:
        weight: W of shape (rows, columns).
        bits: b from 2 to 8.

    Returns:
        Values, codes, steps and confidences. A row of zeros has values and codes of zero.

    Examples:
        >>> statsq_reference(torch.tensor([[-0.2, 0.6], [0.0, 0.0]]), bits=2).values
        tensor([[-0.2000,  0.6000],
                [ 0.0000,  0.0000]])
    """
    w, n = weight.to(torch.promote_types(weight.dtype, torch.float32)), 2 ** (bits - 1)
    step = 2.0 * w.abs().mean(1) / n
    divisor = step.clamp_min(torch.finfo(step.dtype).tiny).unsqueeze(1)
    u = (w / divisor).clamp(-n, n * TOP) - 0.5
    k = u.round()
    threshold = u.floor().clamp(-n, n - 2) + 0.5
    values = ((k + 0.5) * step.unsqueeze(1)).to(weight.dtype)
    return StatsQuantized(values, k.to(torch.int8), step, (u - threshold).abs())


def oscillation_reference(
    codes: Tensor, previous: Tensor, direction: Tensor, ema: Tensor, momentum: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Tell which codes went back where they had come from, and average that over time, out of place.

    $$D = \operatorname{sign}(k_{t-1} - k_t), \quad o_t = [k_t \ne k_{t-1},\ D = -D_\text{last}], \quad
    f_t = m\,o_t + (1 - m) f_{t-1}$$

    Args:
        codes: k of this step.
        previous: k of the step before.
        direction: Last D that was not zero, 0 if there was none.
        ema: f.
        momentum: m.

    Returns:
        Whether a code changed, whether it oscillated, and the new direction and average.

    Examples:
        >>> k, before = torch.tensor([1, 0]), torch.tensor([0, 0])
        >>> oscillation_reference(k, before, torch.tensor([1, 1]), torch.zeros(2), 0.5)[1]
        tensor([ True, False])
    """
    turn = (previous > codes).to(torch.int8) - (previous < codes).to(torch.int8)
    oscillated = turn * direction == -1
    moved = turn != 0
    average = momentum * oscillated + (1.0 - momentum) * ema
    return moved, oscillated, torch.where(moved, turn, direction), average.to(ema.dtype)
