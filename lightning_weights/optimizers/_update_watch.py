"""Counts what a thresholding optimizer updates and says when a network has stopped training."""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_weights.errors import LightningWeightsWarning

WINDOW = 100
PERIOD = 1000
FEWEST_UPDATES = 1e-4
QUANTILE_SAMPLE = 1 << 20


class UpdateWatch:
    """Watches the first 100 of every 1000 steps, since counting costs a pass over the weights on CPUs.

    Args:
        name: Name of the optimizer, for the messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps = 0
        self.seen = 0  # weights that took part in the counted steps of this window
        self.counts: dict[torch.device, Tensor] = {}

    @property
    def counting(self) -> bool:
        """Whether the step about to be taken is counted."""
        return self.steps % PERIOD < WINDOW

    def counts_on(self, device: torch.device) -> Tensor:
        """Return the counters of one device: accepted weights and non-finite gradient elements."""
        if device not in self.counts:
            self.counts[device] = torch.zeros(2, dtype=torch.int64, device=device)
        return self.counts[device]

    def after_step(self, gradients: Iterable[Tensor], thresholds: Iterable[float]) -> None:
        """Close one step.

        Args:
            gradients: Gradients of the step, whose quantiles the warning tells.
            thresholds: Thresholds of the parameter groups, for the warning.

        Raises:
            FloatingPointError: If gradients were NaN or infinite.
        """
        window_ends = self.steps % PERIOD == WINDOW - 1
        self.steps += 1
        # Reading an accelerator's counter waits for the device, so there it is read once per window.
        read = [counts for device, counts in self.counts.items() if device.type == "cpu" or window_ends]
        nonfinite = sum(int(counts[1]) for counts in read)
        share = sum(int(counts[0]) for counts in read) / self.seen if window_ends and self.seen else 1.0
        if window_ends:
            self.seen = 0
            for counts in read:
                counts.zero_()
        if nonfinite:
            for counts in read:
                counts[1] = 0
            raise FloatingPointError(
                f"{nonfinite} gradient elements were NaN or infinite. {self.name} skipped them and updated the rest, "
                f"so its state is sound. Find the cause with Trainer(detect_anomaly=True), lower the learning rate or "
                f"clip the gradients."
            )
        if share < FEWEST_UPDATES:
            self._warn(share, gradients, thresholds)

    def _warn(self, share: float, gradients: Iterable[Tensor], thresholds: Iterable[float]) -> None:
        # torch.quantile takes 16 million elements at most, so large tensors are sampled evenly.
        samples = [g.flatten()[:: 1 + g.numel() // QUANTILE_SAMPLE].float().square().cpu() for g in gradients]
        squares = torch.cat([*samples, torch.empty(0)])[: 1 << 24]
        if squares.numel() == 0:
            return  # without gradients in this step there is nothing to tell
        levels = (0.5, 0.9, 0.99, 1.0)
        quantiles = torch.quantile(squares, squares.new_tensor(levels)).tolist()
        seen = ", ".join(f"{level:.0%} {value:.1e}" for level, value in zip(levels, quantiles, strict=True))
        warnings.warn(
            f"{self.name} updated {share:.4%} of the weights during {WINDOW} steps: the network hardly trains. "
            f"Quantiles of the squared gradients now: {seen}; the threshold is "
            f"{', '.join(map(str, sorted(set(thresholds))))}. Lower it to well below the 90% quantile.",
            LightningWeightsWarning,
            stacklevel=5,
        )
