"""FOEM as in its first preprint: the gradient estimate without H, whose inverse is applied in every step."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weights.functional.column_solver.config import CompensationConfig, FOEMConfig
from lightning_weights.functional.column_solver.factors import Factors
from lightning_weights.kernels.compensate_columns import search_block

POWER_STEPS = 10


def solve_first_order(
    remaining: Tensor,
    original: Tensor,
    factors: Factors,
    grids: tuple[Tensor, Tensor],
    groups: Tensor,
    config: CompensationConfig,
) -> tuple[Tensor, float]:
    r"""Quantize transposed weights (n, m) by v1's step, column by column; they are used up.

    $$W_{q:} \mathrel{-}= e\, U_{q,q:} - w_q P_{q,q:} + \beta\, (W_{q:} - W^0_{q:})\, U_{q:,q:}^T U_{q:,q:}$$

    in the block, with e = (w - ŵ) / U_qq, and the last term once for all later columns at the block's end. All terms
    are taken from the weights before the step.

    Args:
        remaining: Weights in the solver's order.
        original: The same before dead columns were zeroed, as in the authors' code.
        factors: Coefficients.
        grids: Scales and zero points of all groups, (groups, m) each.
        groups: Group of every column, (n,).
        config: β and the grid.

    Returns:
        Codes, (n, m), and the loss.

    Raises:
        ValueError: If β is too large for these inputs.
    """
    beta = config.beta if isinstance(config, FOEMConfig) else 0.0
    upper, levels = factors.upper, 2**config.bits - 1
    _check_beta(upper, beta)
    (scale, zero), n = grids, len(remaining)
    codes = torch.empty(remaining.shape, dtype=torch.uint8, device=remaining.device)
    loss = torch.zeros((), dtype=torch.float64, device=remaining.device)
    for start in range(0, n, config.block_size):
        stop = min(start + config.block_size, n)
        search_block(
            remaining[start:],
            scale,
            zero,
            groups[start:stop],
            bits=config.bits,
            grid=config.grid_name,
            clip=config.mse_clip,
            search=config.searched,
            start=start,
        )
        coefficients, index = factors.coefficients[start:stop], groups[start:stop].tolist()
        pushed = remaining.new_empty(stop - start, coefficients.shape[1], remaining.shape[1])
        for q in range(start, stop):
            w, block = remaining[q].clone(), slice(q, stop)
            s, z = scale[index[q - start]], zero[index[q - start]]
            code = (torch.round(w / s) + z).clamp_(0, levels)
            quantized = s * (code - z)
            pulled = _pulled(remaining[block] - original[block], upper[block, block], beta)
            pushed[q - start] = torch.stack([w - quantized, w][: coefficients.shape[1]])
            remaining[block].addmm_(coefficients[q - start, :, block].T, pushed[q - start]).sub_(pulled)
            if coefficients.shape[1] > 1:
                pushed[q - start, 1] = quantized - pulled[0]
            codes[q] = code.to(torch.uint8)
            loss += 0.5 * ((w - quantized) / upper[q, q]).square().sum(dtype=torch.float64)
        if stop < n:
            rest = remaining[stop:]
            pulled = _pulled(rest - original[stop:], upper[stop:, stop:], beta)
            rest.addmm_(coefficients[:, :, stop:].flatten(0, 1).T, pushed.flatten(0, 1)).sub_(pulled)
    return codes, float(loss)


def _pulled(drift: Tensor, upper: Tensor, beta: float) -> Tensor:
    """Return β·(drift UᵀU), for transposed drifts, by two products."""
    return beta * (upper.T @ (upper @ drift))


def _check_beta(upper: Tensor, beta: float) -> None:
    """Power iteration for the largest eigenvalue of (H + λI)⁻¹ = UᵀU, which β must stay below the inverse of."""
    vector = torch.ones(len(upper), dtype=upper.dtype, device=upper.device) / len(upper) ** 0.5
    size = upper.new_zeros(())
    for _ in range(POWER_STEPS):
        vector = upper.T @ (upper @ vector)
        size = vector.norm()
        vector = vector / size
    if beta * float(size) >= 1.0:
        raise ValueError(
            f"beta is {beta}, and v1 diverges with these inputs: the largest allowed is {0.99 / float(size):.3g}. Use "
            f"that, more damp, or variant='v2', which does not depend on the size of the inputs"
        )
