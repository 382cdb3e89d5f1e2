"""The TRADES loss with its attack."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.functional.attacks import check_per_channel, trades_attack, trades_loss


class TradesLoss(nn.Module):
    r"""Train for accuracy on clean inputs and for equal predictions on adversarial ones.

    $$\mathrm{CE}(f(x), y) + \frac{\beta}{B} \sum_{i=1}^{B}
    \max_{\|x'_i - x_i\|_\infty \le \epsilon} \mathrm{KL}\bigl(p(x_i) \,\|\, p(x'_i)\bigr)$$

    Three forwards in the network's own mode, f(x), f(x') and f(x) again, each with its own noise and statistics; the
    attack between the first two is in evaluation mode and leaves gradients, buffers and flags as they are.

    Args:
        epsilon: ε ≥ 0, or a list with one per channel.
        step_size: Step η > 0 of the attack, or a list with one per channel.
        steps: Steps of the attack, from 0.
        beta: β ≥ 0, the weight of robustness.
        clip_min: Smallest input, or a list with one per channel for normalised inputs.
        clip_max: Largest input, or a list with one per channel for normalised inputs.

    Raises:
        ValueError: If an argument is out of range.

    Source: Zhang et al. 2019 (TRADES), arXiv:1901.08573.

    Examples:
        >>> import torch
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> TradesLoss(steps=2)(network, torch.rand(2, 1, 4), torch.tensor([0, 2])).shape
        torch.Size([])
    """

    def __init__(
        self,
        epsilon: float | list[float] = 8 / 255,
        step_size: float | list[float] = 0.0069,
        steps: int = 10,
        beta: float = 6.0,
        clip_min: float | list[float] = 0.0,
        clip_max: float | list[float] = 1.0,
    ) -> None:
        check_per_channel("epsilon", epsilon, low=0.0, low_allowed=True)
        check_per_channel("step_size", step_size, low=0.0)
        check_number("steps", steps, low=0, whole=True)
        check_number("beta", beta, low=0.0)
        check_per_channel("clip_min", clip_min)
        check_per_channel("clip_max", clip_max)
        super().__init__()
        self.epsilon, self.step_size = _plain(epsilon), _plain(step_size)
        self.clip_min, self.clip_max = _plain(clip_min), _plain(clip_max)
        self.steps, self.beta = steps, beta

    def attack(self, network: nn.Module, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return adversarial inputs, see `functional.attacks.trades_attack`.

        Args:
            network: Turns inputs into logits.
            x: Inputs of shape (N, channels, ...).
            noise: Standard normal noise to start from. ``None``: from PyTorch's global generator.
        """
        return trades_attack(
            network,
            x,
            epsilon=self.epsilon,
            step_size=self.step_size,
            steps=self.steps,
            clip_min=self.clip_min,
            clip_max=self.clip_max,
            noise=noise,
        )

    def forward(self, network: nn.Module, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the loss of a batch.

        Args:
            network: Turns inputs into logits.
            x: Inputs of shape (N, channels, ...).
            y: Labels of shape (N,).
            noise: Standard normal noise for the attack to start from. ``None``: from PyTorch's global generator.
        """
        logits = network(x)
        attacked = self.attack(network, x, noise)
        return trades_loss(logits, network(attacked), network(x), y, self.beta)


def _plain(value: float | Sequence[float]) -> float | list[float]:
    return list(value) if isinstance(value, Sequence) else value
