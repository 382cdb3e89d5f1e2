"""Stochastic gates on the output filters of a layer."""

import math

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.functional.counter_noise import counter_noise
from lightning_weights.functional.hard_concrete import (
    LOG_ALPHA_BOUND,
    NOISE_MARGIN,
    hard_concrete_gate,
    hard_concrete_keep_probability,
    hard_concrete_sample,
)

INITIAL_SPREAD = 0.01  # standard deviation of log α at the start


class HardConcreteGate(nn.Module):
    r"""Multiply every filter of a weight, its slices along dimension 0, by a hard-concrete gate in [0, 1].

    $$z_j = \min(1, \max(0, s_j(\zeta - \gamma) + \gamma)), \qquad
    s_j = \sigma\Bigl(\frac{\log u_j - \log(1 - u_j) + \log\alpha_j}{\beta}\Bigr)$$

    It is a parametrization for ``torch.nn.utils.parametrize``. In training every use of the weight draws one u per
    filter, for the whole batch; in evaluation the gate is σ(log α)(ζ - γ) + γ, clipped. Both are computed in fp32. A
    bias is not gated.

    The noise is a function of two buffers, a seed and the number of draws: checkpoints resume it, all processes of
    DistributedDataParallel draw the same, and ``torch.compile`` traces it. Seed and log α come from PyTorch's global
    generator at construction. Activation checkpointing would draw again in the recomputation: leave gated layers out.

    Args:
        size: Number of filters.
        droprate_init: Initial probability p, strictly between 0 and 1: log α starts near log((1 - p) / p).
        temperature: β > 0; the smaller, the closer to binary.
        gamma: Lower end γ < 0 of the stretched interval.
        zeta: Upper end ζ > 1 of the stretched interval.

    Raises:
        ValueError: If a number is out of range.

    Source: Louizos, Welling & Kingma 2018, arXiv:1712.01312, as used by Feng et al. 2025, arXiv:2503.20454.

    Examples:
        >>> from torch.nn.utils import parametrize
        >>> layer = nn.Linear(8, 4)
        >>> layer = parametrize.register_parametrization(layer, "weight", HardConcreteGate(4))
        >>> layer.eval()(torch.zeros(2, 8)).shape
        torch.Size([2, 4])
    """

    seed: Tensor
    draws: Tensor

    def __init__(
        self,
        size: int,
        droprate_init: float = 0.3,
        temperature: float = 2 / 3,
        gamma: float = -0.1,
        zeta: float = 1.1,
    ) -> None:
        check_number("size", size, low=1, whole=True)
        check_number("droprate_init", droprate_init, low=0.0, high=1.0, low_allowed=False)
        check_number("temperature", temperature, low=0.0, low_allowed=False)
        check_number("gamma", gamma, low=-math.inf, high=0.0, low_allowed=False)
        check_number("zeta", zeta, low=1.0, low_allowed=False)
        super().__init__()
        self.temperature, self.gamma, self.zeta = temperature, gamma, zeta
        start = math.log((1.0 - droprate_init) / droprate_init)
        self.log_alpha = nn.Parameter(start + INITIAL_SPREAD * torch.randn(size, dtype=torch.float32))
        self.register_buffer("seed", torch.randint(2**31, ()))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with every filter multiplied by its gate; in training, draw new gates."""
        gates = self.sample(self.next_noise()) if self.training else self.gates()
        return weight * gates.to(weight.dtype).view(-1, *(1,) * (weight.dim() - 1))

    def next_noise(self) -> Tensor:
        """Return the noise of the next draw, float32 in (0, 1), and count the draw."""
        noise = counter_noise(self.seed, self.draws, len(self.log_alpha))
        self.draws.add_(1)
        return NOISE_MARGIN + (1.0 - 2.0 * NOISE_MARGIN) * noise

    def sample(self, noise: Tensor) -> Tensor:
        """Return the gates that noise in (0, 1) makes, of shape (size,)."""
        return hard_concrete_sample(self.log_alpha.float(), noise, self.temperature, self.gamma, self.zeta)

    def gates(self) -> Tensor:
        """Return the gates of evaluation, of shape (size,)."""
        return hard_concrete_gate(self.log_alpha.float(), self.gamma, self.zeta)

    def keep_probability(self) -> Tensor:
        """Return the probability of every gate of being open in training, of shape (size,)."""
        return hard_concrete_keep_probability(self.log_alpha.float(), self.temperature, self.gamma, self.zeta)

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring log α back to [log 1e-2, log 1e2], in place; due after every optimizer step."""
        self.log_alpha.clamp_(-LOG_ALPHA_BOUND, LOG_ALPHA_BOUND)
