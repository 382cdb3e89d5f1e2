"""Quantization of one weight matrix, column by column."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.functional.column_solver.config import CompensationConfig, FOEMConfig
from lightning_weights.functional.column_solver.factors import Factors, factorize, finite
from lightning_weights.functional.column_solver.first_order import solve_first_order
from lightning_weights.functional.column_solver.grids import (
    dequantize,
    group_grids,
    group_index,
    round_to_grid,
    search_grid,
)
from lightning_weights.functional.full_precision import full_precision
from lightning_weights.kernels.compensate_columns import compensate_columns

CACHED_COLUMNS = 16


class QuantizedWeight(NamedTuple):
    """A quantized weight matrix; columns are in their original order.

    Attributes:
        codes: uint8, (m, n).
        scale: Scale of every row and group, (m, groups).
        zero: Zero point of every row and group, (m, groups): w = scale · (code - zero).
        g_idx: int32, group of every column, (n,).
        dequantized: The weights that the codes stand for, in the original dtype, (m, n).
        loss: ½ Σ e², of all errors that were passed on. For GPTQ it is ½ tr((Q - W) (H + λI) (Q - W)ᵀ); with ResComp
            and FOEM it is no measure of the layer. NaN for RTN.
        damp: Damping that was used; NaN for RTN.

    Examples:
        >>> config = CompensationConfig(method="rtn", bits=2, group_size=-1, sym=False, mse_clip=False)
        >>> quantized = quantize_weight(torch.tensor([[0.0, 3.0, 1.2]]), config=config)
        >>> quantized.codes, quantized.dequantized
        (tensor([[0, 3, 1]], dtype=torch.uint8), tensor([[0., 3., 1.]]))
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    g_idx: Tensor
    dequantized: Tensor
    loss: float
    damp: float


@torch.no_grad()
def quantize_weight(
    weight: Tensor,
    hessian: Tensor | None = None,
    asymmetry: Tensor | None = None,
    *,
    config: CompensationConfig,
    factors: Factors | None = None,
    name: str = "the layer",
    dtype: torch.dtype = torch.float32,
) -> QuantizedWeight:
    r"""Quantize a weight matrix column by column, passing errors on to the columns that are still to come.

    In the order q = 0, 1, … of the columns, with ŵ_q the level next to w_q, later columns j of the block become

    $$W_j \mathrel{-}= \frac{(w_q - \hat w_q) - c\,(w_q - W^0_q)}{U_{qq}} U_{qj}
      \quad [\, \mathrel{+}= (w_q + b\,(W^0_q - w_q))\, P_{qj}\,]$$

    with c = b = 0 for GPTQ (and the bracket for GPTAQ), c = α₂, b = α₂ / α for ResComp and c = β for FOEM, which also
    pulls each column back by β before it is rounded. Rows are independent: layers with the same inputs can be stacked.

    Args:
        weight: (m, n); it is not changed. Weights of convolutions are flattened to two dimensions.
        hessian: H of [`InputStatistics`][lightning_weights.functional.column_solver.InputStatistics]; None for RTN, or
            if ``factors`` are given.
        asymmetry: D, if ``config.asymmetric``.
        config: Method and grid.
        factors: What [`factorize`][lightning_weights.functional.column_solver.factorize] made of H and D, if several
            matrices share them.
        name: The layer, for messages.
        dtype: Of all arithmetic: float32 or float64.

    Returns:
        Codes, grids and dequantized weights.

    Raises:
        ValueError: If a shape or a combination of arguments is not allowed, or a value is not finite.

    Examples:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> inputs = torch.randn(64, 8) @ torch.randn(8, 8)
        >>> weight, hessian = torch.randn(4, 8), inputs.T @ inputs
        >>> config = CompensationConfig(method="gptq", group_size=-1)
        >>> gptq, rtn = (
        ...     quantize_weight(weight, hessian, config=CompensationConfig(method=m, group_size=-1)).dequantized
        ...     for m in ("gptq", "rtn")
        ... )
        >>> relative_error(weight, gptq, hessian) < relative_error(weight, rtn, hessian)
        True
    """
    _check(weight, hessian, factors, config, name)
    if config.method == "rtn":
        return _round_to_nearest(weight, config, dtype)
    if factors is None:
        assert hessian is not None
        factors = factorize(hessian, asymmetry, config=config, name=name, dtype=dtype)
    columns, spare, grids, groups = _prepare(weight.to(dtype), factors, config)
    with torch.autocast(weight.device.type, enabled=False), full_precision():
        if isinstance(config, FOEMConfig) and config.variant == "v1":
            original = weight.to(dtype).T.contiguous()[factors.order]
            codes, loss = solve_first_order(columns, original, factors, grids, groups, config)
        else:
            codes, loss = _solve(columns, spare, factors, grids, groups, config)
    if math.isnan(loss):
        raise ValueError(f"quantizing {name} gave NaN; allowed are a larger damp, or a smaller alpha or beta")
    back = factors.order.argsort() if config.act_order else None
    return _result(weight, codes, grids, groups, (columns, spare), back, loss, factors.damp)


def _prepare(
    w: Tensor, factors: Factors, config: CompensationConfig
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
    """Return weights in the solver's order and grids as far as they are known, both transposed, and columns' groups.

    After the weights comes memory of the same shape: fresh memory costs more than what is written, so that originals
    and results take turns in it.
    """
    (m, n), size, settings = w.shape, config.group_size, (config.bits, config.grid_name, config.mse_clip)
    groups = group_index(n, size).to(w.device)
    columns = w.T.clone(memory_format=torch.contiguous_format)  # a copy of a single row, too
    spare = torch.empty_like(columns)
    if size == -1:  # before dead columns are zeroed, unlike groups
        scale, zero = (grid[None] for grid in search_grid(columns, *settings))
    columns[factors.dead] = 0.0
    if config.static_groups:
        scale, zero = (grid.T.contiguous() for grid in group_grids(columns.T, size, *settings))
        groups = groups[factors.order]
    elif size != -1:
        scale, zero = w.new_zeros(2, -(-n // size), m)
    if config.act_order:
        columns, spare = torch.index_select(columns, 0, factors.order, out=spare), columns
    return columns, spare, (scale, zero), groups


def _solve(
    remaining: Tensor,
    spare: Tensor,
    factors: Factors,
    grids: tuple[Tensor, Tensor],
    groups: Tensor,
    config: CompensationConfig,
) -> tuple[Tensor, float]:
    """Quantize transposed weights (n, m) in the solver's order, block by block; they are used up.

    ``spare`` is memory of the same shape for what they were, if that is needed.

    Returns:
        Codes, (n, m), and the loss.
    """
    (n, m), rule = remaining.shape, config.rule
    pull_all = isinstance(config, FOEMConfig) and config.pull == "all"
    pull_start = rule.pull if isinstance(config, FOEMConfig) and config.pull_block_start else 0.0
    original = spare.copy_(remaining) if rule.cae or rule.pull else None
    codes = torch.empty(n, m, dtype=torch.uint8, device=remaining.device)
    loss = torch.zeros((), dtype=torch.float64, device=remaining.device)
    for start in range(0, n, config.block_size):
        stop = min(start + config.block_size, n)
        block = factors.coefficients[start:stop]
        codes[start:stop], pushed, losses = compensate_columns(
            remaining[start:],
            None if original is None else original[start:stop],
            block[:, :, start:stop],
            factors.diagonal[start:stop],
            *grids,
            groups[start:stop],
            bits=config.bits,
            grid=config.grid_name,
            clip=config.mse_clip,
            search=config.searched,
            start=start,
            cae=rule.cae,
            blend=rule.blend,
            pull=rule.pull,
            pull_all=pull_all,
            outer=rule.outer,
            block_last=config.clamp_scope == "block_last",
        )
        loss += losses.sum(dtype=torch.float64)
        rest = remaining[stop:]
        if len(rest) == 0:
            break
        if pull_all and original is not None:
            kept = (1.0 - rule.pull) ** torch.arange(stop - start, 0, -1, device=rest.device, dtype=rest.dtype)
            pushed = pushed * kept[:, None, None]
            rest.lerp_(original[stop:], 1.0 - (1.0 - rule.pull) ** (stop - start))
        rest.addmm_(block[:, :, stop:].flatten(0, 1).T, pushed.flatten(0, 1))
        if pull_start and original is not None:
            rest[0].lerp_(original[stop], pull_start)
    return codes, float(loss)


def _round_to_nearest(weight: Tensor, config: CompensationConfig, dtype: torch.dtype) -> QuantizedWeight:
    w = weight.to(dtype)
    groups = group_index(w.shape[1], config.group_size).to(w.device)
    scale, zero = group_grids(w, config.group_size, config.bits, config.grid_name, config.mse_clip)
    codes = round_to_grid(w, scale, zero, groups, config.bits)
    near = dequantize(codes, scale, zero, groups).to(weight.dtype)
    return QuantizedWeight(codes, scale, zero, groups, near, math.nan, math.nan)


def _result(
    weight: Tensor,
    codes: Tensor,
    grids: tuple[Tensor, Tensor],
    g_idx: Tensor,
    spare: tuple[Tensor, Tensor],
    back: Tensor | None,
    loss: float,
    damp: float,
) -> QuantizedWeight:
    """Bring transposed codes and grids into the layout of the weight, with columns in their original order, ``back``.

    ``spare`` is memory of the codes' shape that nobody needs any more.
    """
    (scale, zero), (levels, other) = grids, spare
    found, counts = g_idx.unique_consecutive(return_counts=True)
    sizes = counts.tolist()
    for group, columns, same in zip(found.tolist(), levels.split(sizes), codes.split(sizes), strict=True):
        for level, code in zip(columns.split(CACHED_COLUMNS), same.split(CACHED_COLUMNS), strict=True):
            level.copy_(code).sub_(zero[group]).mul_(scale[group])
    if back is not None:
        codes, g_idx = codes[back], g_idx[back]
        levels, other = torch.index_select(levels, 0, back, out=other), levels
    # transposed as a whole, which is much faster than by pieces
    dequantized, codes = other.view(weight.shape).copy_(levels.T).to(weight.dtype), codes.T.contiguous()
    return QuantizedWeight(codes, scale.T.contiguous(), zero.T.contiguous(), g_idx, dequantized, loss, damp)


def _check(
    weight: Tensor, hessian: Tensor | None, factors: Factors | None, config: CompensationConfig, name: str
) -> None:
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"weight of {name} has shape {tuple(weight.shape)}; allowed are two dimensions, not empty")
    if not finite(weight):
        raise ValueError(f"weight of {name} holds NaN or infinity; allowed are finite weights")
    if config.method == "rtn":
        return
    if (hessian is None) == (factors is None):
        raise ValueError(
            f"hessian and factors of {name} are both {'missing' if factors is None else 'given'}; give one"
        )
    columns = len(hessian) if hessian is not None else len(factors.order) if factors is not None else 0
    if columns != weight.shape[1]:
        raise ValueError(f"the statistics of {name} have {columns} input features, its weight has {weight.shape[1]}")


def relative_error(weight: Tensor, dequantized: Tensor, hessian: Tensor) -> float:
    r"""Return the share of a layer's output that quantization changed, over the inputs that H was collected from.

    $$\frac{\mathrm{tr}((Q - W) H (Q - W)^T)}{\mathrm{tr}(W H W^T)}$$

    Args:
        weight: W, (m, n).
        dequantized: Q, (m, n).
        hessian: H, (n, n), of any scale; products are of its dtype.

    Examples:
        >>> relative_error(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.eye(2))
        0.25
    """
    w, change = weight.to(hessian.dtype), dequantized.to(hessian.dtype) - weight.to(hessian.dtype)
    with torch.autocast(hessian.device.type, enabled=False), full_precision():
        energy, lost = (float((x @ hessian).mul_(x).sum(dtype=torch.float64)) for x in (w, change))
    return lost / energy if energy > 0.0 else 0.0
