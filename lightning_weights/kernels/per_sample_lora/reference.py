"""Readable specification of linear layers with an adapter per sample, in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor


def per_sample_lora_reference(base: Tensor, tokens: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Compute [`per_sample_lora`][] with differentiable PyTorch operations.

    Args:
        base: Outputs of the frozen layer (N, T, out).
        tokens: Its inputs x (N, T, in).
        a: A of every sample (N, r, in).
        b: B of every sample (N, out, r).
        scale: s.

    Returns:
        The adapted outputs (N, T, out), in fp32 or wider.

    Examples:
        >>> ones = torch.ones(1, 1, 2)
        >>> per_sample_lora_reference(ones, ones, torch.ones(1, 1, 2), torch.ones(1, 2, 1), 0.5)
        tensor([[[2., 2.]]])
    """
    wide = torch.promote_types(base.dtype, torch.float32)
    base, tokens, a, b = (tensor.to(wide) for tensor in (base, tokens, a, b))
    delta = torch.einsum("nor,nri,nti->nto", b, a, tokens)
    return base + scale * delta
