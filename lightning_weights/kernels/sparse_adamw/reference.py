"""Specification of the sparse AdamW step in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.kernels._mixing import GOLDEN_RATIO, mixed


def round_stochastically(values: Tensor, indices: Tensor, seed: int) -> Tensor:
    """Round fp32 to bf16, up or down with the probabilities that make the result right on average.

    Args:
        values: fp32 tensor.
        indices: Where each value belongs; the same place, seed and value give the same result everywhere.
        seed: Of this tensor and step.

    Returns:
        A bf16 tensor. NaN and infinity stay what they are.

    Examples:
        >>> values = torch.full((4096,), 1.0 + 2**-9)  # a quarter of the way from 1 to the next bf16 number
        >>> rounded = round_stochastically(values, torch.arange(4096), seed=0)
        >>> rounded.unique(), round(rounded.float().mean().item(), 3)
        (tensor([1.0000, 1.0078], dtype=torch.bfloat16), 1.002)
    """
    noise = mixed(indices.long() * GOLDEN_RATIO + seed) & 0xFFFF
    bits = (values.view(torch.int32).long() + noise) & 0xFFFF0000
    bits = torch.where(bits > 0x7FFFFFFF, bits - (1 << 32), bits)
    return torch.where(values.isfinite(), bits.to(torch.int32).view(torch.float32), values).to(torch.bfloat16)


def arithmetic_dtype(param: Tensor, first: Tensor) -> torch.dtype:
    """Return the type in which a step is computed: fp32, or fp64 if the weights or moments are.

    Args:
        param: The weights.
        first: Their first moments.

    Examples:
        >>> arithmetic_dtype(torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1))
        torch.float32
    """
    return torch.promote_types(torch.promote_types(param.dtype, first.dtype), torch.float32)


def sparse_adamw_reference(
    param: Tensor,
    indices: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    step_size: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float = 1.0,
    rounding_seed: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute one step of AdamW on chosen entries out of place: the specification of the operator.

    With g the gradient at those entries, m' = β₁m + (1 - β₁)g, v' = β₂v + (1 - β₂)g² and
    w' = d·(w - a·m' / (√v' + ε)). Every other entry keeps its bits.

    Args:
        param: Weights of any shape, strides and floating dtype.
        indices: Row-major flat indices of the k chosen entries, each once.
        grad: Gradient of the shape of ``param``, or of its chosen entries alone, (k,).
        first: m, (k,).
        second: v, (k,).
        step_size: a, the learning rate with its bias correction.
        beta1: β₁.
        beta2: β₂.
        eps: ε, outside the root and outside the bias correction.
        decay: d, what a decoupled weight decay leaves.
        rounding_seed: Rounds bf16 weights stochastically, with this seed; None rounds them to the nearest.

    Returns:
        The new weights and moments.

    Examples:
        >>> w, idx, zero = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 2]), torch.zeros(2)
        >>> rule = {"step_size": 0.5, "beta1": 0.0, "beta2": 0.0, "eps": 0.0}
        >>> sparse_adamw_reference(w, idx, torch.tensor([9.0, -1.0]), zero, zero, **rule)[0]
        tensor([[1.0000, 1.5000],
                [3.5000, 4.0000]])
    """
    wide = arithmetic_dtype(param, first)
    rows = indices.long()
    g = (grad if grad.shape == first.shape else grad.flatten()[rows]).to(wide)
    m = beta1 * first.to(wide) + (1.0 - beta1) * g
    v = beta2 * second.to(wide) + (1.0 - beta2) * g * g
    flat = param.flatten().clone()
    w = (flat[rows].to(wide) - step_size * (m / (v.sqrt() + eps))) * decay
    if rounding_seed is not None and param.dtype == torch.bfloat16 and wide == torch.float32:
        flat[rows] = round_stochastically(w, indices, rounding_seed)
    else:
        flat[rows] = w.to(param.dtype)
    return flat.view(param.shape), m.to(first.dtype), v.to(second.dtype)
