"""Hard-concrete gates: binary gates, smoothed so that the probability of being closed has a gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOISE_MARGIN = 1e-6  # noise stays this far from 0 and 1, where its logit is infinite
LOG_ALPHA_BOUND = math.log(1e2)  # |log α| is kept below it


def hard_concrete_sample(
    log_alpha: Tensor, noise: Tensor, temperature: float = 2 / 3, gamma: float = -0.1, zeta: float = 1.1
) -> Tensor:
    r"""Sample gates from uniform noise.

    $$z = \min(1, \max(0, s(\zeta - \gamma) + \gamma)), \qquad
    s = \sigma\Bigl(\frac{\log u - \log(1 - u) + \log\alpha}{\beta}\Bigr)$$

    Args:
        log_alpha: log α, one per gate, in any shape.
        noise: u in the open interval (0, 1), of the shape of ``log_alpha``.
        temperature: β > 0; the smaller, the closer to binary.
        gamma: Lower end γ < 0 of the stretched interval.
        zeta: Upper end ζ > 1 of the stretched interval.

    Returns:
        Gates in [0, 1]; differentiable with respect to ``log_alpha`` where they are strictly inside.

    Source: Louizos, Welling & Kingma 2018, arXiv:1712.01312.

    Examples:
        >>> hard_concrete_sample(torch.zeros(3), torch.tensor([0.01, 0.5, 0.99]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    smooth = torch.sigmoid((noise.log() - torch.log1p(-noise) + log_alpha) / temperature)
    return (smooth * (zeta - gamma) + gamma).clamp(0.0, 1.0)


def hard_concrete_gate(log_alpha: Tensor, gamma: float = -0.1, zeta: float = 1.1) -> Tensor:
    r"""Return the gates for evaluation, without noise and without temperature.

    $$z = \min(1, \max(0, \sigma(\log\alpha)(\zeta - \gamma) + \gamma))$$

    Args:
        log_alpha: log α, one per gate, in any shape.
        gamma: Lower end γ < 0 of the stretched interval.
        zeta: Upper end ζ > 1 of the stretched interval.

    Returns:
        Gates in [0, 1], rising with ``log_alpha``.

    Source: Louizos, Welling & Kingma 2018, arXiv:1712.01312.

    Examples:
        >>> hard_concrete_gate(torch.tensor([-9.0, 0.0, 9.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return (torch.sigmoid(log_alpha) * (zeta - gamma) + gamma).clamp(0.0, 1.0)


def hard_concrete_closed_probability(
    log_alpha: Tensor, temperature: float = 2 / 3, gamma: float = -0.1, zeta: float = 1.1
) -> Tensor:
    r"""Return the probability that a sampled gate is exactly zero.

    $$q_0 = \sigma(\beta \log(-\gamma / \zeta) - \log\alpha)$$

    Args:
        log_alpha: log α, one per gate, in any shape.
        temperature: β > 0.
        gamma: Lower end γ < 0 of the stretched interval.
        zeta: Upper end ζ > 1 of the stretched interval.

    Returns:
        Probabilities, clamped to [1e-6, 1 - 1e-6].

    Source: Louizos, Welling & Kingma 2018, arXiv:1712.01312.

    Examples:
        >>> hard_concrete_closed_probability(torch.zeros(1))
        tensor([0.1682])
    """
    closed = torch.sigmoid(temperature * math.log(-gamma / zeta) - log_alpha)
    return closed.clamp(NOISE_MARGIN, 1.0 - NOISE_MARGIN)


def hard_concrete_keep_probability(
    log_alpha: Tensor, temperature: float = 2 / 3, gamma: float = -0.1, zeta: float = 1.1
) -> Tensor:
    r"""Return the probability that a sampled gate is open, $\pi = 1 - q_0$.

    Args:
        log_alpha: log α, one per gate, in any shape.
        temperature: β > 0.
        gamma: Lower end γ < 0 of the stretched interval.
        zeta: Upper end ζ > 1 of the stretched interval.

    Returns:
        Probabilities in [1e-6, 1 - 1e-6].

    Source: Louizos, Welling & Kingma 2018, arXiv:1712.01312.

    Examples:
        >>> hard_concrete_keep_probability(torch.zeros(1))
        tensor([0.8318])
    """
    return 1.0 - hard_concrete_closed_probability(log_alpha, temperature, gamma, zeta)
