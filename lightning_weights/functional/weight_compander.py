"""Around companding: its inverse, its scales, and what it does to the distribution of weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_weights.errors import check_choice, check_number
from lightning_weights.kernels.compand import FUNCTIONS, LIMITS, CompandFunction

MARGIN = 1e-3  # weights are kept away from the bound, where the inverse is infinite, by this share of it


def compand_inverse(weight: Tensor, a: Tensor, b: Tensor, function: CompandFunction = "arctan") -> Tensor:
    r"""Return the latent weights that stand for weights, which are clipped a little within the bound first.

    $$v = b \tan(w / a), \quad b \operatorname{artanh}(w / a) \quad \text{or} \quad b\,\frac{w}{a - |w|}$$

    Args:
        weight: Weights w of any shape.
        a: Scales a > 0: one number, or one per slice of the weights along dimension 0.
        b: Widths b > 0, as many as ``a``.
        function: ``arctan``, ``tanh`` or ``softsign``.

    Returns:
        Latents of the weights' shape and dtype, computed in fp32 or wider.

    Raises:
        ValueError: If the function is none of them.

    Source: Cakaj, Mehnert & Yang 2023, arXiv:2306.16993. The functions are inferred from its abstract.

    Examples:
        >>> compand_inverse(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([1.0]))
        tensor([0.5463])
    """
    check_choice("function", function, FUNCTIONS)
    wide = torch.promote_types(weight.dtype, torch.float32)
    limit = LIMITS[function] * (1.0 - MARGIN)
    unit = (weight.to(wide) / _per_slice(a.to(wide), weight)).clamp(-limit, limit)
    if function == "softsign":
        ratio = unit / (1.0 - unit.abs())
    else:
        ratio = torch.tan(unit) if function == "arctan" else torch.atanh(unit)
    return (ratio * _per_slice(b.to(wide), weight)).to(weight.dtype)


def clipped_share(weight: Tensor, a: Tensor, function: CompandFunction = "arctan") -> float:
    """Return the share of weights that ``compand_inverse`` has to clip.

    Args:
        weight: Weights of any shape.
        a: Scales a > 0: one number, or one per slice of the weights along dimension 0.
        function: ``arctan``, ``tanh`` or ``softsign``.

    Raises:
        ValueError: If the function is none of them.

    Examples:
        >>> clipped_share(torch.tensor([-4.0, 0.0, 1.0, 3.0]), torch.tensor([1.0]))
        0.5
    """
    check_choice("function", function, FUNCTIONS)
    wide = torch.promote_types(weight.dtype, torch.float32)
    limit = _per_slice(a.to(wide), weight) * LIMITS[function] * (1.0 - MARGIN)
    return float((weight.to(wide).abs() > limit).double().mean()) if weight.numel() else 0.0


def scales_of(weight: Tensor, kappa: float, beta: float, per_slice: bool = False) -> tuple[Tensor, Tensor]:
    r"""Return the scale and the width that suit a weight's standard deviation σ.

    $$a = \kappa \sigma, \qquad b = \beta \sigma$$

    The gain at zero is κ/β for latents, and (κ/β)² for a step of theirs; the bound of the arctan is 1.57 κσ.

    Args:
        weight: Weight of a layer.
        kappa: κ > 0.
        beta: β > 0.
        per_slice: Whether every slice along dimension 0 gets a scale of its own.

    Returns:
        a and b in fp32 or wider, of shape (1,), or one number per slice. They are zero where σ is.

    Raises:
        ValueError: If κ or β is not positive.

    Examples:
        >>> scales_of(torch.tensor([-1.0, 1.0]), kappa=3.0, beta=2.0)
        (tensor([3.]), tensor([2.]))
    """
    check_number("kappa", kappa, low=0.0, low_allowed=False)
    check_number("beta", beta, low=0.0, low_allowed=False)
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    rows = wide.flatten(1) if per_slice else wide.reshape(1, -1)
    sigma = rows.std(dim=1, correction=0)
    return kappa * sigma, beta * sigma


def softplus_inverse(value: Tensor) -> Tensor:
    r"""Return ρ with softplus(ρ) = log(1 + exp ρ) equal to positive values, also to very small and large ones.

    Args:
        value: Positive numbers.

    Examples:
        >>> torch.nn.functional.softplus(softplus_inverse(torch.tensor([0.1, 1000.0])))
        tensor([1.0000e-01, 1.0000e+03])
    """
    return value + torch.log(-torch.expm1(-value))


def near_zero_share(weight: Tensor, threshold: float = 0.1) -> float:
    """Return the share of weights closer to zero than ``threshold`` standard deviations: the weights that count little.

    Args:
        weight: Effective weights w, never latent ones.
        threshold: In standard deviations of the weights.

    Raises:
        ValueError: If the threshold is negative.

    Examples:
        >>> near_zero_share(torch.tensor([0.01, -1.0, 1.0, 0.0]))
        0.5
    """
    check_number("threshold", threshold, low=0.0)
    return float((weight.abs() < threshold * weight.std(correction=0)).double().mean())


def kurtosis(weight: Tensor) -> float:
    r"""Return the fourth moment of weights over the squared second, $E w^4 / (E w^2)^2$.

    It is 3 for a normal distribution, 1.8 for a uniform one and 1 if all weights are equally large.

    Args:
        weight: Effective weights w, never latent ones.

    Examples:
        >>> kurtosis(torch.tensor([-2.0, 2.0, 2.0]))
        1.0
    """
    return weight.numel() / participation_ratio(weight)


def participation_ratio(weight: Tensor) -> float:
    r"""Return how many weights take part, $(\sum w^2)^2 / \sum w^4$: from 1, if one does, to all of them.

    Args:
        weight: Effective weights w, never latent ones.

    Examples:
        >>> participation_ratio(torch.tensor([1.0, -1.0, 0.0, 0.0]))
        2.0
    """
    squares = weight.detach().double().square()
    fourth = float(squares.square().sum())
    return float(squares.sum()) ** 2 / fourth if fourth else math.nan


def _per_slice(numbers: Tensor, weight: Tensor) -> Tensor:
    return numbers.reshape(()) if numbers.numel() == 1 else numbers.view(-1, *(1,) * (weight.dim() - 1))
