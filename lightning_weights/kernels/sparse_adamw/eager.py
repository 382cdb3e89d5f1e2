"""The sparse AdamW step without Triton: in place, a cache-sized piece at a time, without waiting for a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.kernels._mixing import mixed
from lightning_weights.kernels.sparse_adamw.reference import arithmetic_dtype, round_stochastically

CHUNK = 1 << 16  # entries updated at a time: what one operation wrote is still in the cache when the next reads it


def adam_in_place(
    w: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    step_size: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
) -> None:
    """Update weights and moments of one shape and dtype; see [`sparse_adamw_reference`][].

    Args:
        w: Weights.
        g: Gradient.
        m: First moments.
        v: Second moments.
        step_size: a, the learning rate with its bias correction.
        beta1: β₁.
        beta2: β₂.
        eps: ε.
        decay: d, what a decoupled weight decay leaves.

    Examples:
        >>> w, m, v = torch.zeros(2), torch.zeros(2), torch.zeros(2)
        >>> adam_in_place(w, torch.tensor([1.0, -2.0]), m, v, 0.5, beta1=0.5, beta2=0.75, eps=0.0, decay=1.0)
        >>> w.tolist(), m.tolist(), v.tolist()
        ([-0.5, 0.5], [0.5, -1.0], [0.25, 1.0])
    """
    m.mul_(beta1).add_(g, alpha=1.0 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
    w.addcdiv_(m, v.sqrt().add_(eps), value=-step_size)
    if decay != 1.0:
        w.mul_(decay)


@torch.inference_mode()  # spares every call the autograd layers; version counters still advance
def step_in_pieces(
    params: Sequence[Tensor],
    indices: Sequence[Tensor],
    grads: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    step_sizes: Sequence[float],
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    rounding_seed: int | None,
) -> None:
    """Update tensors in place; arguments as in [`sparse_adamw`][]."""
    matrices = zip(params, indices, grads, firsts, seconds, step_sizes, strict=True)
    for position, (param, idx, grad, first, second, step_size) in enumerate(matrices):
        seed = None if rounding_seed is None or param.dtype != torch.bfloat16 else mixed(rounding_seed + position)
        whole = param if param.is_contiguous() else param.contiguous()
        piece = CHUNK if param.device.type == "cpu" else max(1, len(idx))
        gathered = grad.shape == first.shape
        flat_grad = grad if gathered else grad.reshape(-1)
        for start in range(0, len(idx), piece):
            part = slice(start, start + piece)
            places = idx[part].long()
            g = flat_grad[part] if gathered else flat_grad.index_select(0, places)
            rule = (step_size, beta1, beta2, eps, decay)
            _update(whole.view(-1), places, g, first[part], second[part], rule, seed)
        if whole is not param:
            param.copy_(whole)


def _update(
    flat: Tensor,
    places: Tensor,
    g: Tensor,
    first: Tensor,
    second: Tensor,
    rule: tuple[float, float, float, float, float],
    seed: int | None,
) -> None:
    wide = arithmetic_dtype(flat, first)
    m, v = first.to(wide), second.to(wide)  # themselves, where they are wide already
    w = flat.index_select(0, places).to(wide)
    adam_in_place(w, g.to(wide), m, v, *rule)
    if m is not first:
        first.copy_(m)
        second.copy_(v)
    if seed is not None and wide == torch.float32:
        w = round_stochastically(w, places, seed)
    flat.scatter_(0, places, w.to(flat.dtype))
