"""Diffusion models as Karras and others set them up: preconditioning, loss weights, noise levels and a sampler."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.errors import check_number

MOST_CHURN = math.sqrt(2.0) - 1.0  # a step adds no more noise than there is


class EDMScales(NamedTuple):
    """Factors between a denoiser and the network inside it, as many as noise levels.

    Attributes:
        skip: Share of the noisy data in the answer.
        out: Factor of the network's output.
        input: Factor of the network's input.
        noise: What the network is told about the noise level.
    """

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


def edm_scales(sigma: Tensor, sigma_data: float = 1.0) -> EDMScales:
    r"""Return the factors with which a network's input and target have unit variance at every noise level.

    $$D(x, \sigma) = c_\text{skip} x + c_\text{out} F(c_\text{in} x, c_\text{noise}), \quad
    c_\text{skip} = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2}, \quad
    c_\text{out} = \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}, \quad
    c_\text{in} = \frac{1}{\sqrt{\sigma^2 + \sigma_d^2}}, \quad c_\text{noise} = \frac{\ln \sigma}{4}$$

    Args:
        sigma: Standard deviations σ > 0 of the noise.
        sigma_data: Standard deviation of the data.

    Returns:
        The four factors, each of σ's shape.

    Raises:
        ValueError: If ``sigma_data`` is not positive.

    Source: Karras et al. 2022, arXiv:2206.00364.

    Examples:
        >>> scales = edm_scales(torch.tensor([1.0]))
        >>> scales.skip, scales.noise
        (tensor([0.5000]), tensor([0.]))
    """
    check_number("sigma_data", sigma_data, low=0.0, low_allowed=False)
    variance = sigma.square() + sigma_data**2
    root = variance.sqrt()
    return EDMScales(sigma_data**2 / variance, sigma * sigma_data / root, 1.0 / root, sigma.log() / 4.0)


def edm_loss_weight(sigma: Tensor, sigma_data: float = 1.0) -> Tensor:
    r"""Return the weight of the squared error at a noise level, with which all levels count alike for the network.

    $$\lambda(\sigma) = \frac{\sigma^2 + \sigma_d^2}{(\sigma \sigma_d)^2} = \frac{1}{c_\text{out}^2}$$

    Args:
        sigma: Standard deviations σ > 0 of the noise.
        sigma_data: Standard deviation of the data.

    Returns:
        The weights, of σ's shape.

    Raises:
        ValueError: If ``sigma_data`` is not positive.

    Source: Karras et al. 2022, arXiv:2206.00364.

    Examples:
        >>> edm_loss_weight(torch.tensor([1.0, 2.0]))
        tensor([2.0000, 1.2500])
    """
    check_number("sigma_data", sigma_data, low=0.0, low_allowed=False)
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()


def noise_levels(
    count: int, mean: float = -1.2, std: float = 1.2, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""Draw noise levels to train at.

    $$\ln \sigma \sim \mathcal{N}(\mu, s^2)$$

    Args:
        count: How many.
        mean: μ.
        std: s ≥ 0.
        generator: Where random numbers come from, on the CPU; ``None`` for PyTorch's global generator.

    Returns:
        Levels σ of shape (count,), on the CPU.

    Raises:
        ValueError: If a number is out of range.

    Source: Karras et al. 2022, arXiv:2206.00364.

    Examples:
        >>> noise_levels(2, mean=0.0, std=0.0)
        tensor([1., 1.])
    """
    check_number("count", count, low=0, whole=True)
    check_number("mean", mean, low=-math.inf)
    check_number("std", std, low=0.0)
    return (mean + std * torch.randn(count, generator=generator, device="cpu")).exp()


def sampling_levels(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    r"""Return the noise levels that a sampler goes through, from the largest to none.

    $$\sigma_i = \left( \sigma_\max^{1/\rho} + \tfrac{i}{n - 1}
    (\sigma_\min^{1/\rho} - \sigma_\max^{1/\rho}) \right)^\rho, \quad \sigma_n = 0$$

    Args:
        steps: Number n of steps.
        sigma_min: Last level above 0; not used with a single step.
        sigma_max: First level.
        rho: How many of the levels are small ones.

    Returns:
        Levels of shape (steps + 1,), float64, on the CPU.

    Raises:
        ValueError: If a number is out of range.

    Source: Karras et al. 2022, arXiv:2206.00364.

    Examples:
        >>> sampling_levels(3, sigma_min=1.0, sigma_max=4.0, rho=1.0)
        tensor([4.0000, 2.5000, 1.0000, 0.0000], dtype=torch.float64)
    """
    check_number("steps", steps, low=1, whole=True)
    check_number("sigma_min", sigma_min, low=0.0, low_allowed=False)
    check_number("sigma_max", sigma_max, low=sigma_min, low_allowed=False)
    check_number("rho", rho, low=0.0, low_allowed=False)
    ends = (sigma_max ** (1 / rho), sigma_min ** (1 / rho))
    levels = torch.linspace(*ends, steps, dtype=torch.float64, device="cpu") ** rho
    return torch.cat([levels, levels.new_zeros(1)])


def heun_sampler(
    denoise: Callable[[Tensor, float], Tensor], draw: Callable[[], Tensor], levels: Tensor, churn: float = 0.0
) -> Tensor:
    r"""Turn noise into data with Heun's method, adding fresh noise before every step.

    $$\frac{dx}{d\sigma} = \frac{x - D(x, \sigma)}{\sigma}, \qquad
    \hat\sigma = (1 + \gamma) \sigma, \quad \gamma = \min(S_\text{churn} / n, \sqrt 2 - 1)$$

    A step is a line with the slope at its start, then one with the mean of that slope and the one at its end. The last
    step, to no noise at all, is a single line. So the denoiser is asked 2 n - 1 times.

    Args:
        denoise: D, a function of data x and a noise level.
        draw: Returns new standard normal noise of the data's shape.
        levels: Noise levels from the largest to 0, of shape (n + 1,), such as those of `sampling_levels`.
        churn: S_churn ≥ 0; with 0, noise is drawn at the start only.

    Returns:
        A sample, of the shape of the noise.

    Raises:
        ValueError: If ``churn`` is negative, or levels don't fall to 0.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2.

    Examples:
        >>> levels = sampling_levels(8, sigma_max=10.0)
        >>> heun_sampler(lambda x, sigma: torch.full_like(x, 3.0), lambda: torch.randn(2), levels)
        tensor([3., 3.])
    """
    check_number("churn", churn, low=0.0)
    ladder: list[float] = levels.tolist()
    if len(ladder) < 2 or ladder[-1] != 0.0 or any(low >= high for high, low in itertools.pairwise(ladder)):
        raise ValueError(f"levels are {ladder}; allowed are two or more that fall to 0: use sampling_levels")
    growth = min(churn / (len(ladder) - 1), MOST_CHURN)
    x = ladder[0] * draw()
    for level, following in itertools.pairwise(ladder):
        raised = level * (1.0 + growth)
        if growth > 0.0:
            x = x + math.sqrt(raised**2 - level**2) * draw()
        slope = (x - denoise(x, raised)) / raised
        moved = x + (following - raised) * slope
        if following > 0.0:
            end = (moved - denoise(moved, following)) / following
            moved = x + (following - raised) * (slope + end) / 2.0
        x = moved
    return x
