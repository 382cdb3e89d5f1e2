"""Adapted layers in factorised form, which never make the adapted weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor], Tensor]


def bone_row(x: Tensor, linear: Linear, block: Tensor, *, dropout: float = 0.0) -> Tensor:
    r"""Apply a layer with an adapter of variant ``row``, without making its weight.

    $$y = W \tilde x + \mathrm{tile}(s) + c, \qquad \tilde x_b = x_b + B_b x_b, \qquad s = \textstyle\sum_b B_b x_b$$

    Args:
        x: Inputs (..., in).
        linear: The layer, W · + c; its weight may be quantized or sharded.
        block: B (in / r, r, r).
        dropout: Probability with which entries of what B multiplies are dropped, by PyTorch's global generator.

    Returns:
        Outputs (..., out).

    Source: Kang 2024, arXiv:2409.15371; the factorised form is our own.

    Examples:
        >>> from lightning_weights.functional.bone import bone_weight
        >>> x, weight, block = torch.randn(5, 8), torch.randn(12, 8), torch.randn(2, 4, 4)
        >>> y = bone_row(x, lambda inputs: F.linear(inputs, weight), block)
        >>> torch.allclose(y, F.linear(x, bone_weight(weight, block, "row")), atol=1e-4)
        True
    """
    blocks, r, _ = block.shape
    shards = x.reshape(-1, blocks, r)
    guided = torch.bmm(_dropped(shards, dropout).transpose(0, 1), block.to(x.dtype).transpose(1, 2))
    y = linear((shards + guided.transpose(0, 1)).reshape(x.shape).to(x.dtype))
    return _plus_tiled(y, guided.sum(0))


def bone_left(x: Tensor, linear: Linear, block: Tensor, bias: Tensor | None = None, *, dropout: float = 0.0) -> Tensor:
    r"""Apply a layer with an adapter of variant ``left``, without making its weight.

    $$y_a = y^0_a + B_a (y^0_a + S) + c_a, \qquad y^0 = W x, \qquad S = \textstyle\sum_b x_b$$

    Args:
        x: Inputs (..., in).
        linear: The layer, W · + c; its weight may be quantized or sharded.
        block: B (out / r, r, r).
        bias: The layer's bias c (out,), which the adapter doesn't multiply.
        dropout: Probability with which entries of what B multiplies are dropped, by PyTorch's global generator.

    Returns:
        Outputs (..., out).

    Source: Kang 2024, arXiv:2409.15371, as computed by the released kernel; the factorised form is our own.

    Examples:
        >>> from lightning_weights.functional.bone import bone_weight
        >>> x, weight, block = torch.randn(5, 8), torch.randn(12, 8), torch.randn(3, 4, 4)
        >>> y = bone_left(x, lambda inputs: F.linear(inputs, weight), block)
        >>> torch.allclose(y, F.linear(x, bone_weight(weight, block, "left")), atol=1e-4)
        True
    """
    blocks, r, _ = block.shape
    y = linear(x)
    # taken off again, so that without an adapter the sum of product and bias is the layer's own to the last bit
    product = (y if bias is None else y - bias).reshape(-1, blocks, r)
    guide = _dropped(product + _summed_shards(x, r).reshape(-1, 1, r), dropout).to(y.dtype)
    update = torch.bmm(guide.transpose(0, 1), block.to(y.dtype).transpose(1, 2))
    return (y.reshape(-1, blocks, r) + update.transpose(0, 1)).reshape(y.shape).to(y.dtype)


def bone_miss(x: Tensor, linear: Linear, block: Tensor, *, dropout: float = 0.0) -> Tensor:
    r"""Apply a layer with an adapter of variant ``miss`` or ``mini``, without making its weight.

    $$y = W x + D^\top S + c, \qquad S = \textstyle\sum_b x_b$$

    The last shard of x is filled up with zeros where r doesn't divide the inputs. A block with fewer columns than the
    layer has outputs, ``mini``, is repeated along them.

    Args:
        x: Inputs (..., in).
        linear: The layer, W · + c; its weight may be quantized or sharded.
        block: D (r, out) or (r, mini_r).
        dropout: Probability with which entries of the x in S are dropped, by PyTorch's global generator.

    Returns:
        Outputs (..., out).

    Source: Kang & Yin 2025 (MiSS), arXiv:2409.15371v6.

    Examples:
        >>> from lightning_weights.functional.bone import bone_weight
        >>> x, weight, block = torch.randn(5, 8), torch.randn(12, 8), torch.randn(3, 12)
        >>> y = bone_miss(x, lambda inputs: F.linear(inputs, weight), block)
        >>> torch.allclose(y, F.linear(x, bone_weight(weight, block, "miss")), atol=1e-4)
        True
    """
    y = linear(x)
    shards = _summed_shards(_dropped(x, dropout), block.shape[0])
    return _plus_tiled(y, shards.reshape(-1, block.shape[0]) @ block.to(shards.dtype))


def _dropped(x: Tensor, dropout: float) -> Tensor:
    return F.dropout(x, dropout) if dropout > 0.0 else x


def _summed_shards(x: Tensor, r: int) -> Tensor:
    """Add up the shards of length r, the last one filled up with zeros, in the last dimension."""
    whole = x.shape[-1] // r * r
    sums: Tensor = x[..., :whole].unflatten(-1, (-1, r)).sum(-2)
    rest = x.shape[-1] - whole
    return sums + F.pad(x[..., whole:], (0, r - rest)) if rest else sums


def _plus_tiled(y: Tensor, summand: Tensor) -> Tensor:
    """Add a summand (tokens, size) to all pieces of that size of the outputs."""
    size = summand.shape[-1]
    if size == y.shape[-1]:
        return (y + summand.reshape(y.shape)).to(y.dtype)
    return (y.reshape(len(summand), y.shape[-1] // size, size) + summand.unsqueeze(1)).reshape(y.shape).to(y.dtype)
