"""What the solver needs of a layer's inputs: order, dead columns, and the coefficients of all column steps."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.column_solver.config import CompensationConfig
from lightning_weights.functional.full_precision import full_precision

PANEL = 256  # columns


class Factors(NamedTuple):
    """Everything that layers with the same inputs share.

    Attributes:
        order: Original column at each place of the solver's order, (n,).
        dead: Original columns whose inputs are all zero, (n,).
        diagonal: Diagonal of U, in the solver's order, (n,).
        coefficients: What the error of column q (the first row of a pair) and its value (the second, for GPTAQ) add to
            later columns: -U_qj / U_qq and P_qj. (n, 1 or 2, n), strictly upper triangular.
        damp: Share of the mean diagonal that was added in the end.

    Examples:
        >>> from lightning_weights.functional.column_solver import factorize
        >>> factors = factorize(torch.diag(torch.tensor([1.0, 4.0, 0.0])), config=CompensationConfig(method="gptq"))
        >>> factors.order, factors.dead
        (tensor([1, 0, 2]), tensor([False, False,  True]))
    """

    order: Tensor
    dead: Tensor
    diagonal: Tensor
    coefficients: Tensor
    damp: float

    @property
    def upper(self) -> Tensor:
        """U, the upper triangular matrix with UᵀU = (H + λI)⁻¹."""
        return torch.diag(self.diagonal) - self.diagonal[:, None] * self.coefficients[:, 0]


@torch.no_grad()
def factorize(
    hessian: Tensor,
    asymmetry: Tensor | None = None,
    *,
    config: CompensationConfig,
    name: str = "the layer",
    dtype: torch.dtype = torch.float32,
) -> Factors:
    r"""Compute what all column steps need of a layer's inputs.

    $$U^T U = (H + \lambda I)^{-1}, \qquad P = \alpha\, \mathrm{striu}(D U^T)\, U$$

    ResComp needs no matrix of its own: since $(H + \lambda I) U^T = U^{-1}$, its
    $R = \alpha_2\, \mathrm{striu}((D + H) U^T)\, U$ is
    $\tfrac{\alpha_2}{\alpha} P - \alpha_2\, \mathrm{striu}(\mathrm{diag}(U)^{-1} U)$, and goes into the errors.

    Args:
        hessian: H, (n, n).
        asymmetry: D, (n, n), if the method is asymmetric.
        config: Order, damping and α.
        name: The layer, for messages.
        dtype: Of all arithmetic: float32 or float64.

    Raises:
        ValueError: If D is missing, a shape is not allowed, a value is not finite, or H cannot be factorized.

    Examples:
        >>> factors = factorize(torch.eye(3), config=CompensationConfig(method="gptq"))
        >>> factors.damp, factors.coefficients.abs().max()
        (0.01, tensor(0.))
    """
    _check(hessian, asymmetry, config, name)
    h = hessian.to(dtype)
    dead = h.diagonal() == 0
    order = torch.arange(len(h), device=h.device)
    if config.act_order:
        order = h.diagonal().masked_fill(dead, 1.0).argsort(descending=True, stable=True)
    with torch.autocast(h.device.type, enabled=False), full_precision():
        upper, damp = _upper(h, dead, order, config, name)
        diagonal = upper.diagonal().clone()
        coefficients = torch.zeros(len(upper), 1 + config.asymmetric, len(upper), dtype=dtype, device=upper.device)
        if config.asymmetric and asymmetry is not None:
            d = asymmetry.to(dtype).masked_fill(dead, 0.0)
            d = d[order][:, order] if config.act_order else d
            _correction(d, upper, config.alpha, coefficients[:, 1])
        torch.div(upper, -diagonal[:, None], out=coefficients[:, 0])
        coefficients[:, 0].diagonal().zero_()
    return Factors(order, dead, diagonal, coefficients, damp)


def _correction(d: Tensor, upper: Tensor, alpha: float, out: Tensor) -> None:
    """Write α striu(D Uᵀ) U, panel by panel: what is zero on either side is left out of the products."""
    seen = torch.zeros_like(d)
    for start in range(0, len(d), PANEL):
        stop = min(start + PANEL, len(d))
        panel = slice(start, stop)
        seen[:stop, panel] = alpha * torch.triu(d[:stop, start:] @ upper[panel, start:].T, 1 - start)
        out[:stop, panel] = seen[:stop, :stop] @ upper[:stop, panel]


def _inverse(lower: Tensor) -> Tensor:
    """Invert a lower triangular matrix by halves, whose products are much faster than solving for all columns."""
    n, half = len(lower), len(lower) // 2
    if n <= PANEL:
        identity = torch.eye(n, dtype=lower.dtype, device=lower.device)
        solved: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
        return solved
    inverse = torch.zeros_like(lower)
    first, second = inverse[:half, :half], inverse[half:, half:]
    first.copy_(_inverse(lower[:half, :half]))
    second.copy_(_inverse(lower[half:, half:]))
    torch.mm(second @ lower[half:, :half], first, out=inverse[half:, :half]).neg_()
    return inverse


def finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite, in one pass."""
    return all(math.isfinite(float(end)) for end in torch.aminmax(tensor))


def _check(hessian: Tensor, asymmetry: Tensor | None, config: CompensationConfig, name: str) -> None:
    if config.method == "rtn":
        raise ValueError("method is 'rtn', which rounds without statistics; there is nothing to factorize")
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"hessian of {name} has shape {tuple(hessian.shape)}; allowed is a square matrix")
    if config.asymmetric and asymmetry is None:
        raise ValueError(
            f"asymmetry of {name} is missing; {config.method} with alpha {config.alpha} needs it: collect "
            f"InputStatistics with asymmetric=True, from both streams, or set alpha to 0"
        )
    if asymmetry is not None and asymmetry.shape != hessian.shape:
        raise ValueError(f"asymmetry of {name} has shape {tuple(asymmetry.shape)}; allowed is {tuple(hessian.shape)}")
    for argument, value in (("hessian", hessian), ("asymmetry", asymmetry)):
        if value is not None and not finite(value):
            raise ValueError(f"{argument} of {name} holds NaN or infinity; the calibration inputs must be finite")


def _upper(hessian: Tensor, dead: Tensor, order: Tensor, config: CompensationConfig, name: str) -> tuple[Tensor, float]:
    """Factorize with as little damping as works.

    Reversing the order turns the lower factor of H into the upper one of its inverse: one decomposition instead of two,
    and none of the inverse, which is the worse conditioned one.
    """
    back = order.flip(0)
    diagonal = hessian.diagonal().masked_fill(dead, 1.0)[back]
    damp, mean = config.damp, diagonal.mean()
    while True:
        damped = hessian[back][:, back] if config.act_order else hessian.flip(0, 1)
        damped.diagonal().copy_(diagonal + damp * mean)
        lower, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            upper = _inverse(lower).flip(0, 1)
            if finite(upper):
                break
        if config.damp_increment == 0.0 or damp + config.damp_increment >= 1.0:
            raise ValueError(
                f"H of {name} cannot be factorized with damp {damp:.3g}; allowed is a larger damp, a positive "
                f"damp_increment, or more calibration data"
            )
        damp += config.damp_increment
    if not math.isclose(damp, config.damp):
        warnings.warn(
            f"H of {name} could not be factorized with damp {config.damp:.3g}; {damp:.3g} was used",
            LightningWeightsWarning,
            stacklevel=4,
        )
    return upper, damp
