"""The choice of FOEM's coefficient by inputs that were not calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.functional.column_solver.config import FOEMConfig
from lightning_weights.functional.column_solver.factors import factorize
from lightning_weights.functional.column_solver.solve import QuantizedWeight, quantize_weight, relative_error


class BetaSweep(NamedTuple):
    """Result of a sweep.

    Attributes:
        beta: The best β.
        quantized: The weights quantized with it.
        errors: Relative error on the held-out inputs for every β.

    Examples:
        >>> sweep = sweep_beta(torch.eye(2), torch.eye(2), torch.eye(2), betas=[0.1], config=FOEMConfig(group_size=-1))
        >>> sweep.beta, sweep.errors
        (0.1, {0.1: 0.0})
    """

    beta: float
    quantized: QuantizedWeight
    errors: dict[float, float]


def sweep_beta(
    weight: Tensor,
    hessian: Tensor,
    holdout: Tensor,
    asymmetry: Tensor | None = None,
    *,
    betas: Sequence[float],
    config: FOEMConfig,
    dtype: torch.dtype = torch.float32,
) -> BetaSweep:
    """Quantize a layer with several β and keep the one with the least error on held-out inputs.

    H is factorized once. On the calibration inputs β = 0 would always win.

    Args:
        weight: (m, n).
        hessian: H of the calibration inputs.
        holdout: H of other inputs.
        asymmetry: D, if ``config.asymmetric``.
        betas: Values to try.
        config: All other settings.
        dtype: Of all arithmetic.

    Returns:
        The best β, its weights, and all errors.

    Raises:
        ValueError: If there is nothing to try, or an argument is not allowed.

    Examples:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> inputs, others = torch.randn(24, 16), torch.randn(4096, 16)
        >>> hessian, config = inputs.T @ inputs, FOEMConfig(group_size=-1)
        >>> sweep = sweep_beta(torch.randn(8, 16), hessian, others.T @ others, betas=[0.0, 0.1], config=config)
        >>> sweep.beta == min(sweep.errors, key=sweep.errors.get)
        True
    """
    if len(betas) == 0:
        raise ValueError("betas is empty; allowed is at least one number in [0, 1]")
    configs = {float(beta): replace(config, beta=beta) for beta in betas}
    factors = factorize(hessian, asymmetry, config=config, dtype=dtype)
    best, errors = None, {}
    for beta, changed in configs.items():
        quantized = quantize_weight(weight, config=changed, factors=factors, dtype=dtype)
        errors[beta] = relative_error(weight, quantized.dequantized, holdout)
        if best is None or errors[beta] < errors[best[0]]:
            best = beta, quantized
    assert best is not None
    return BetaSweep(*best, errors)
