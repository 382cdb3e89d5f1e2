"""The equations of a linear layer with normalised rows and a low-rank direction, without forming its weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from lightning_weights.kernels.weight_norm_rows import SMALLEST_NORM, weight_norm_rows


def weight_normed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    magnitude: Tensor,
    factor_i: Tensor | None,
    factor_j: Tensor | None,
    scale: float,
    detach_norm: bool = True,
    weight_norm_sq: Tensor | None = None,
    factor_input: Tensor | None = None,
) -> Tensor:
    r"""Apply a linear layer whose rows have a learned length M and the direction of V = W + s·I·J.

    $$y = \frac{M}{\nu} \odot \bigl(x W^\top + s\,(x J^\top) I^\top\bigr) + c, \qquad \nu_a = \|W_a + s\,I_a J\|$$

    Neither V nor its gradient is formed: the largest temporaries have the size of the output.

    Args:
        x: Input of shape (..., n).
        weight: W of shape (m, n). It may be trained where there are no factors.
        bias: c of shape (m,), or None.
        magnitude: M of shape (m,).
        factor_i: I of shape (m, r); None, together with J, for V = W.
        factor_j: J of shape (r, n), or None.
        scale: s; without factors it has no meaning.
        detach_norm: Treat ν as a constant in the backward pass, as DoRA does; else gradients are exact, and that of a
            row of V is orthogonal to the row.
        weight_norm_sq: ‖W‖² of every row, (m,), of a frozen W, which otherwise is computed in every call.
        factor_input: What the factors see instead of x, such as x with dropout.

    Returns:
        Output of shape (..., m) in the dtype of the product x·Wᵀ. Norms and their quotients are fp32 or wider, under
        autocast too. Rows whose direction is zero give c.

    Raises:
        ValueError: If only one of the factors is given, or shapes do not fit.
        ShardedParameterError: If the weight is sharded.

    Source: Huang et al., "Gradient Weight-normalized Low-rank Projection for Efficient LLM Training", 2025,
    arXiv:2412.19616. The norm's detachment is Liu et al., "DoRA", 2024, arXiv:2402.09353.

    Examples:
        >>> x, w, m = torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([10.0])
        >>> weight_normed_linear(x, w, None, m, None, None, scale=1.0)
        tensor([[14.]])
    """
    if (factor_i is None) != (factor_j is None):
        raise ValueError("factor_i and factor_j belong together; give both, or None for both")
    products = nn_functional.linear(x, weight)
    if factor_i is None or factor_j is None:
        norms = _direct_norms(weight.detach() if detach_norm else weight)
    else:
        seen = nn_functional.linear(x if factor_input is None else factor_input, factor_j)
        tokens = products.reshape(-1, products.shape[-1]), seen.reshape(-1, seen.shape[-1])
        products = torch.addmm(tokens[0], tokens[1], factor_i.T, alpha=scale).view(products.shape)
        i, j = (factor_i.detach(), factor_j.detach()) if detach_norm else (factor_i, factor_j)
        fixed = weight.detach() if detach_norm else weight
        norms = weight_norm_rows(fixed, i, j, scale=scale, weight_norm_sq=weight_norm_sq)
    lengths = products * (magnitude.to(norms.dtype) / norms)
    return (lengths if bias is None else lengths + bias).to(products.dtype)


def effective_weight(
    weight: Tensor, magnitude: Tensor, factor_i: Tensor | None, factor_j: Tensor | None, scale: float
) -> Tensor:
    r"""Return the weight of the plain layer that computes the same.

    $$W' = \mathrm{diag}(M)\,\frac{V}{\|V\|_{\mathrm{row}}}, \qquad V = W + s\,I J$$

    Args:
        weight: W of shape (m, n).
        magnitude: M of shape (m,).
        factor_i: I of shape (m, r); None, together with J, for V = W.
        factor_j: J of shape (r, n), or None.
        scale: s.

    Returns:
        W′ in the dtype of the weight, computed in fp32 or wider. Rows whose direction is zero are zero.

    Examples:
        >>> effective_weight(torch.tensor([[3.0, 4.0]]), torch.tensor([10.0]), None, None, scale=1.0)
        tensor([[6., 8.]])
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    direction = weight.to(wide)
    if factor_i is not None and factor_j is not None:
        direction = torch.addmm(direction, factor_i.to(wide), factor_j.to(wide), alpha=scale)
    return (direction * (magnitude.to(wide) / _direct_norms(direction)).unsqueeze(1)).to(weight.dtype)


def _direct_norms(rows: Tensor) -> Tensor:
    wide = torch.promote_types(rows.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=wide)
    return norms.clamp_min(SMALLEST_NORM)
