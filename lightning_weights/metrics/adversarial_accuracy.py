"""Accuracy under attack."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_weights.errors import check_number
from lightning_weights.functional.attacks import check_per_channel, pgd_attack
from lightning_weights.functional.evaluation_mode import evaluation_mode


class AdversarialAccuracy(Metric):
    r"""Count inputs that projected gradient ascent of the cross-entropy cannot make the network misclassify.

    $$\frac1N \sum_{i=1}^{N} \bigl[\arg\max f(x'_i) = y_i \text{ for all attempts } x'_i\bigr], \qquad
    \|x'_i - x_i\|_\infty \le \epsilon$$

    An input is attacked again, from another random start, until it is misclassified or ``restarts`` attempts are over.
    The network is in evaluation mode meanwhile; gradients, buffers and flags are as before, and the metric works under
    ``no_grad`` and in inference mode. Random starts come from ``seed``, not from PyTorch's global generator.

    Args:
        epsilon: ε ≥ 0, or a list with one per channel.
        step_size: Step > 0, or a list with one per channel.
        steps: Steps of an attempt, from 0.
        restarts: Most number of attempts, from 1.
        clip_min: Smallest input, or a list with one per channel for normalised inputs.
        clip_max: Largest input, or a list with one per channel for normalised inputs.
        seed: Seed of the random starts, from 0; every batch begins with it.
        **kwargs: Options of every torchmetrics ``Metric``, such as ``sync_on_compute``.

    Raises:
        ValueError: If an argument is out of range.

    Source: Madry et al. 2018, arXiv:1706.06083.

    Examples:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = network[1].weight.copy_(torch.eye(2))
        >>> metric = AdversarialAccuracy(epsilon=0.1, step_size=0.05)
        >>> metric.update(network, torch.tensor([[[0.9, 0.1]], [[0.5, 0.45]]]), torch.tensor([0, 0]))
        >>> metric.compute()
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    total: Tensor

    def __init__(
        self,
        epsilon: float | list[float] = 8 / 255,
        step_size: float | list[float] = 2 / 255,
        steps: int = 20,
        restarts: int = 1,
        clip_min: float | list[float] = 0.0,
        clip_max: float | list[float] = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_per_channel("epsilon", epsilon, low=0.0, low_allowed=True)
        check_per_channel("step_size", step_size, low=0.0)
        check_number("steps", steps, low=0, whole=True)
        check_number("restarts", restarts, low=1, whole=True)
        check_per_channel("clip_min", clip_min)
        check_per_channel("clip_max", clip_max)
        check_number("seed", seed, low=0, whole=True)
        super().__init__(**kwargs)
        self.epsilon, self.step_size, self.steps, self.restarts = epsilon, step_size, steps, restarts
        self.clip_min, self.clip_max, self.seed = clip_min, clip_max, seed
        for name in ("correct", "total"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, network: nn.Module, x: Tensor, y: Tensor) -> None:
        """Attack one batch and count.

        Args:
            network: Turns inputs into logits of shape (N, classes).
            x: Inputs of shape (N, channels, ...).
            y: Labels of shape (N,).

        Raises:
            ValueError: If inputs are outside their range, or a list fits no channel.
        """
        attacked = pgd_attack(
            network,
            x,
            y,
            epsilon=self.epsilon,
            step_size=self.step_size,
            steps=self.steps,
            restarts=self.restarts,
            clip_min=self.clip_min,
            clip_max=self.clip_max,
            generator=torch.Generator().manual_seed(self.seed),
        )
        with evaluation_mode(network), torch.no_grad():
            predicted = network(attacked).argmax(dim=1)
        self.correct = self.correct + (predicted == y).sum()
        self.total = self.total + len(y)

    def compute(self) -> Tensor:
        """Return the fraction of inputs that withstood, float32; NaN before the first batch."""
        return self.correct.to(torch.float32) / self.total.to(torch.float32)
