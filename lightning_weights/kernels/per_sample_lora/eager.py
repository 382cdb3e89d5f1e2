"""Linear layers with an adapter per sample without Triton: two batched products, the second of which adds."""

from __future__ import annotations

import torch
from torch import Tensor


def shrink(tokens: Tensor, a: Tensor) -> Tensor:
    """Return x Aᵀ, the tokens seen through every sample's A.

    Args:
        tokens: x (N, T, in).
        a: A (N, r, in).
    """
    inner = tokens.new_empty((tokens.shape[0], tokens.shape[1], a.shape[1]))
    return torch.bmm(tokens, a.mT, out=inner)  # with out= autocast doesn't come between


def expand(base: Tensor, inner: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return base + s h Bᵀ.

    Args:
        base: Outputs of the frozen layer (N, T, out).
        inner: h (N, T, r).
        b: B (N, out, r).
        scale: s.
    """
    outputs = torch.empty_like(base, memory_format=torch.contiguous_format)
    return torch.baddbmm(base, inner, b.mT, alpha=scale, out=outputs)


def gradients(
    grad: Tensor, tokens: Tensor, inner: Tensor, a: Tensor, b: Tensor, scale: float, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of tokens, A and B, empty ones where they are not needed.

    Args:
        grad: Gradient of the outputs (N, T, out).
        tokens: x (N, T, in).
        inner: h (N, T, r).
        a: A (N, r, in).
        b: B (N, out, r).
        scale: s.
        needed: Which of the three are wanted.
    """
    found = [grad.new_empty(0) for _ in needed]
    if needed[0] or needed[1]:
        # s goes into the smallest product: everything behind it is linear in it
        back = torch.bmm(grad, b, out=torch.empty_like(inner)).mul_(scale)
        if needed[0]:
            found[0] = torch.bmm(back, a, out=torch.empty_like(tokens, memory_format=torch.contiguous_format))
        if needed[1]:
            found[1] = torch.bmm(back.mT, tokens, out=torch.empty_like(a, memory_format=torch.contiguous_format))
    if needed[2]:
        found[2] = torch.bmm(grad.mT, inner, out=torch.empty_like(b, memory_format=torch.contiguous_format))
        found[2].mul_(scale)
    return found[0], found[1], found[2]
